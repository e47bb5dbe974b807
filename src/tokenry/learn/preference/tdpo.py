"""TDPO: DPO whose margin is corrected by how far each completion has drifted, token by token.

    R(y) = sum_t log pi(y_t|s_t) / pi_ref(y_t|s_t)
    D(y) = sum_t KL( pi_ref(.|s_t) || pi(.|s_t) )           sequential forward KL, whole vocabulary

    TDPO1   loss = -log sigmoid( beta * [ R(y_w) - R(y_l) - (D(y_l) - D(y_w)) ] )
    TDPO2   loss = -log sigmoid( beta * [ R(y_w) - R(y_l) - alpha (D(y_l) - sg D(y_w)) ] )

y_w is the chosen and y_l the rejected completion, s_t the prompt and the tokens before t, pi the
policy, pi_ref the frozen reference, sg the stop-gradient (on the chosen KL only). The token-level
Bellman equation of the KL-constrained problem gives Q - V = beta log(pi/pi_ref) + beta KL, and as
the two completions pass through different states their KL terms do not cancel.

Source: Token-level Direct Preference Optimization (arXiv 2404.11999), eqs. 15-17. R and D are sums
over completion tokens, not means. The logged rewards, beta (R + D), follow the same derivation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from tokenry.core.aggregate import full_precision
from tokenry.core.batch import TokenBatch
from tokenry.core.checks import one_of, within
from tokenry.core.divergences import FORWARD_KL
from tokenry.core.f_divergence import FDivergence
from tokenry.core.scores import Scores
from tokenry.learn.objective import Loss, Objective, Unit, objective
from tokenry.learn.preference.pairs import halves, sequence_sum
from tokenry.learn.preference.weighted import pair_loss, preference_loss

Variant = Literal["tdpo1", "tdpo2"]


def tdpo_loss(
    chosen_log_ratio: Tensor,
    rejected_log_ratio: Tensor,
    chosen_kl: Tensor,
    rejected_kl: Tensor,
    *,
    beta: float,
    alpha: float = 0.5,
    variant: Variant = "tdpo2",
) -> Tensor:
    """Loss of each pair, [B], from R and D of both sides, [B] each. TDPO1 has no alpha."""
    sides = (chosen_log_ratio, rejected_log_ratio, chosen_kl, rejected_kl)
    chosen_log_ratio, rejected_log_ratio, chosen_kl, rejected_kl = map(full_precision, sides)
    margin = chosen_log_ratio - rejected_log_ratio
    if variant == "tdpo1":
        margin = margin - (rejected_kl - chosen_kl)
    else:
        margin = margin - alpha * (rejected_kl - chosen_kl.detach())
    return pair_loss(beta * margin)


@dataclass(frozen=True)
class KLMargin:
    """alpha times each row's sequential KL to the reference, as a margin: [2B].

    alpha: its weight, in [0, inf). detach_chosen: no gradient through the KL of chosen rows
        (TDPO2).
    """

    alpha: float = 0.5
    detach_chosen: bool = True

    needs: ClassVar[tuple[str, ...]] = ("policy.divergence",)

    def __post_init__(self) -> None:
        within(self, "[0, inf)", "alpha")

    def __call__(
        self, batch: TokenBatch, policy: Scores, reference: Scores | None, **_: object
    ) -> Tensor:
        kl = sequence_sum(policy.need("divergence"), batch)
        if self.detach_chosen:
            chosen, rejected = halves(kl)
            kl = torch.cat([chosen.detach(), rejected])
        return self.alpha * kl


@objective("tdpo", paper=0)
@dataclass(frozen=True)
class TDPO(Objective):
    """Token-level Direct Preference Optimization.

    beta: strength of the pull towards the reference, in (0, inf); the paper's default is 0.1.
    alpha: weight of the KL difference in TDPO2, in [0, inf); default 0.5. 0 gives DPO exactly.
    variant: "tdpo2" (default) or "tdpo1". TDPO1 lets the gradient also shrink its margin by
        raising the chosen KL; the paper advises it for low learning rates only.
    """

    beta: float = 0.1
    alpha: float = 0.5
    variant: Variant = "tdpo2"

    needs: ClassVar[tuple[str, ...]] = ("policy.logprob", "reference.logprob", "policy.divergence")
    unit: ClassVar[Unit] = "pair"
    divergence: ClassVar[FDivergence] = FORWARD_KL
    at_reference: ClassVar[float] = math.log(2)

    def __post_init__(self) -> None:
        within(self, "(0, inf)", "beta")
        within(self, "[0, inf)", "alpha")
        one_of("TDPO.variant", self.variant, get_args(Variant))

    def stopped(self, batch: TokenBatch) -> dict[str, Tensor]:
        """TDPO2 takes no gradient through the KL of chosen rows."""
        rows = torch.arange(len(batch.ids), device=batch.ids.device) < len(batch.ids) // 2
        return (
            {"policy.divergence": rows[:, None] & batch.target} if self.variant == "tdpo2" else {}
        )

    def __call__(
        self, batch: TokenBatch, policy: Scores, reference: Scores | None, **_: object
    ) -> Loss:
        margin = KLMargin(1.0, False) if self.variant == "tdpo1" else KLMargin(self.alpha)
        result = preference_loss(
            batch, policy, reference, beta=self.beta, margin=margin(batch, policy, reference)
        )
        kl = sequence_sum(policy.need("divergence"), batch).detach()
        chosen_kl, rejected_kl = halves(kl)
        for side, total in (("chosen", chosen_kl), ("rejected", rejected_kl)):
            ratio = result.metrics[f"log_ratio/{side}"]
            result.metrics[f"rewards/{side}"] = self.beta * (ratio + total)
            result.metrics[f"kl/{side}"] = total
        margins = result.metrics["rewards/chosen"] - result.metrics["rewards/rejected"]
        result.metrics["rewards/margin"] = margins
        result.metrics["rewards/accuracy"] = (margins > 0).float()
        result.metrics["kl/gap"] = (chosen_kl - rejected_kl).abs()
        return result
