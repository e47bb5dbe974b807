"""DPO: preference learning as classification of pairs by the policy's own implicit reward.

    R(y) = sum_t log pi(y_t|s_t) / pi_ref(y_t|s_t)
    loss = -log sigmoid( beta * (R(y_w) - R(y_l)) )

y_w is the chosen and y_l the rejected completion of one prompt x, s_t = (x, y_<t), pi the policy,
pi_ref the frozen reference. beta * R(y) is the implicit reward: for the maximiser of
E[r] - beta KL(pi || pi_ref) it equals r(x, y) up to a constant of x, which cancels in the pair.

Source: Direct Preference Optimization: Your Language Model is Secretly a Reward Model
(arXiv 2305.18290), eq. 7. R sums over tokens; beta therefore acts on whole sequences.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tokenry.core.aggregate import full_precision
from tokenry.core.batch import TokenBatch
from tokenry.core.checks import within
from tokenry.core.scores import Scores
from tokenry.learn.objective import Loss, Objective, Unit, objective
from tokenry.learn.preference.weighted import pair_loss, preference_loss


def dpo_loss(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, *, beta: float) -> Tensor:
    """Loss of each pair, [B], from the sequence log-ratios R of both sides, [B] each."""
    return pair_loss(beta * (full_precision(chosen_log_ratio) - full_precision(rejected_log_ratio)))


@objective("dpo", paper=None)
@dataclass(frozen=True)
class DPO(Objective):
    """Direct Preference Optimization, the baseline of the preference family.

    beta: strength of the pull towards the reference, in (0, inf); the paper's default is 0.1. Small
        values let the policy move far.
    """

    beta: float = 0.1

    needs: ClassVar[tuple[str, ...]] = ("policy.logprob", "reference.logprob")
    unit: ClassVar[Unit] = "pair"
    at_reference: ClassVar[float] = math.log(2)

    def __post_init__(self) -> None:
        within(self, "(0, inf)", "beta")

    def __call__(
        self, batch: TokenBatch, policy: Scores, reference: Scores | None, **_: object
    ) -> Loss:
        return preference_loss(batch, policy, reference, beta=self.beta)
