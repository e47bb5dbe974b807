"""AlignDistil: alignment as distillation from a teacher beyond what DPO has learnt, per token.

    z*     = z_dpo + w_t (z_dpo - z_rev)                teacher's logits at s_t
    w_t    = c d_t + 0.001,    d_t = sum_v | pi_dpo(v|s_t) - pi_rev(v|s_t) |
    loss   = mean_y mean_t  (beta / w_t) KL( pi(.|s_t) || softmax z* )

pi_dpo was trained by DPO, pi_rev by DPO with chosen and rejected swapped; both are frozen. pi is
the policy, y its own samples (or the data's completions), c a scale, beta the reward's scale. The
gradient flows through both places of pi in the KL, at every token of the vocabulary.

Why: with the reward beta log(pi_dpo / pi_ref) and a KL penalty of weight beta2, the objective of
RLHF at every state is -beta2 KL(pi || pi*) and a constant, pi* = softmax(w z_dpo + (1 - w) z_ref)
with w = beta / beta2. A reverse model in place of the reference makes the reward contrastive and
pulls towards pi_dpo; where the two models differ more, the teacher goes further.

    tokenry train --objective align-distil --frozen dpo=runs/dpo --frozen reverse=runs/reverse ...

Source: AlignDistil: Token-Level Language Model Alignment as Adaptive Policy Distillation (arXiv
2503.02832). The first completion token counts too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from tokenry.core.aggregate import per_sequence
from tokenry.core.batch import TokenBatch
from tokenry.core.checks import within
from tokenry.core.divergence import divergence as logits_divergence
from tokenry.core.divergences import REVERSE_KL, TOTAL_VARIATION
from tokenry.core.errors import InputError, UnknownNameError
from tokenry.core.extrapolate import extrapolate
from tokenry.core.f_divergence import FDivergence
from tokenry.core.fused_divergence import fused_divergence
from tokenry.core.scores import Scores
from tokenry.learn.objective import Loss, Objective, Unit, objective
from tokenry.learn.policy.gradient import PolicyGradient, Preset
from tokenry.learn.policy.terms import Auxiliary

Against = Literal["reverse", "reference"]
SMALLEST_WEIGHT = 1e-3  # the loss divides by w_t


@objective("align-distil-offline", paper=118)
@dataclass(frozen=True)
class OfflineAlignDistil(Objective):
    """AlignDistil on the completions of the preference data, chosen and rejected alike.

    beta: the reward's scale, in (0, inf); multiplies the loss.
    scale: c, in [0, inf): how far the teacher goes for a distance d_t between 0 and 2; the paper's
        are 10 on the data's completions and 15 on the policy's own.
    weight: a fixed w = beta / beta2, in (0, inf), instead of the adaptive one; None by default.
    against: "reverse", or "reference" for the teacher w z_dpo + (1 - w) z_ref without a reverse
        model; d_t is then the distance to the reference.
    """

    beta: float = 0.1
    scale: float = 10.0
    weight: float | None = None
    against: Against = "reverse"

    unit: ClassVar[Unit] = "row"

    def __post_init__(self) -> None:
        if self.against not in get_args(Against):
            raise UnknownNameError("model to contrast with", self.against, get_args(Against))
        within(self, "(0, inf)", "beta")
        within(self, "[0, inf)", "scale")
        within(self, "(0, inf)", "weight", optional=True)  # the loss divides by it

    @property
    def needs(self) -> tuple[str, ...]:
        return ("policy.hidden", "dpo.hidden", f"{self.against}.hidden")

    def __call__(
        self,
        batch: TokenBatch,
        policy: Scores,
        reference: Scores | None = None,
        *,
        dpo: Scores | None = None,
        reverse: Scores | None = None,
        **_: object,
    ) -> Loss:
        other = reverse if self.against == "reverse" else reference
        if dpo is None or other is None:
            raise InputError(
                f'AlignDistil needs two frozen models, "dpo" and "{self.against}": pass '
                f'frozen={{"dpo": ..., "{self.against}": ...}}'
            )
        if self.weight is None:
            weight = adaptive_weight(dpo, other, self.scale)
        else:
            weight = torch.full(batch.shape, self.weight, device=batch.ids.device)
        teacher = contrastive_teacher(dpo, other, weight, self.against)
        kl = token_divergence(policy, teacher, REVERSE_KL)
        rows = per_sequence(self.beta / weight * kl, batch.target, "mean")
        metrics = {
            "loss": rows.detach(),
            "distil/kl": per_sequence(kl.detach(), batch.target, "mean"),
            "distil/weight": per_sequence(weight, batch.target, "mean"),
        }
        return Loss(rows.mean(), metrics)


@objective("align-distil", paper=118)
@dataclass(frozen=True)
class AlignDistil(Preset, OfflineAlignDistil):
    """AlignDistil on the policy's own samples, one per prompt in the paper; it needs no rewards.

    The parameters are those of `OfflineAlignDistil`; scale is 15 by default.
    """

    scale: float = 15.0

    num_rewards: ClassVar[int] = 0

    def composed(self) -> PolicyGradient:
        loss = OfflineAlignDistil(self.beta, self.scale, self.weight, self.against)
        return PolicyGradient(None, aggregation="sequence-mean", terms=(Auxiliary(loss),))


@torch.no_grad()
def adaptive_weight(dpo: Scores, other: Scores, scale: float) -> Tensor:
    """w_t = scale d_t + 0.001, [B, T], with d_t in [0, 2] twice the total variation."""
    return 2 * scale * token_divergence(dpo, other, TOTAL_VARIATION) + SMALLEST_WEIGHT


@torch.no_grad()
def contrastive_teacher(
    dpo: Scores, other: Scores, weight: Tensor, against: Against = "reverse"
) -> Scores:
    """The teacher's hidden states and head; against the reference, w = 1 is the DPO model."""
    return extrapolate(dpo, other, weight if against == "reverse" else weight - 1, needs=())


def token_divergence(policy: Scores, teacher: Scores, kind: FDivergence) -> Tensor:
    """D(teacher || policy) at every scored token, [B, T]; gradients reach the policy only."""
    mask = policy.mask
    if policy.hidden is not None and policy.head is not None and teacher.head is not None:
        values = fused_divergence(
            policy.hidden[mask], policy.head, teacher.need("hidden")[mask], teacher.head, kind
        )
    elif policy.full_logits is not None:
        values = logits_divergence(teacher.logits(), policy.full_logits, kind)
    else:
        raise InputError('a divergence of distributions needs scores made with "hidden"')
    return values.new_zeros(mask.shape).masked_scatter(mask, values)
