"""TW-GRPO: positions at which the completions of a group disagree count more.

Of a group of G completions, at position t (counted from the completion's start):

    M_v  = mean_g log p_g(v),   d_gv = clip(M_v - log p_g(v), -11, 11)
    D_t  = mean_g sum_v ( exp d_gv - d_gv - 1 )                 >= 0, 0 where all agree
    w_t  = 1 + (alpha - 1) (D_t - min D) / (max D - min D + 1e-8)     in [1, alpha]
    maximise  sum_it w_t min( u A, clip(u) A ) / tokens

After its end a completion counts with the uniform distribution; min and max are over the positions
of the group's longest completion. The sampling policy's distributions are meant, and w is a
constant. They are made from hidden states, some positions and some of the vocabulary at a time.

Source: Reinforcing Video Reasoning with Focused Thinking (arXiv 2505.24718) and its code, which
lets the gradient through w; as a weight, it has none here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tokenry.core.checks import within
from tokenry.learn.objective import objective
from tokenry.learn.policy.gradient import PolicyGradient, Preset
from tokenry.learn.policy.group_divergence import divergence_weights
from tokenry.learn.policy.groups import GroupAdvantage
from tokenry.learn.policy.rollout_batch import Column, RolloutBatch
from tokenry.learn.policy.surrogate import Clip


@dataclass(frozen=True)
class WeighedAdvantage:
    """The axis: GRPO's advantages; the weights are left for the updates."""

    alpha: float

    rollout_needs: ClassVar[tuple[str, ...]] = ("policy.hidden",)

    def __call__(self, rollouts: RolloutBatch) -> Tensor:
        scores, mask, group = rollouts.scores(), rollouts.mask, rollouts.group
        hidden, head = scores.need("hidden"), scores.need("head")
        rollouts.keep(focus=divergence_weights(hidden, head, mask, group, self.alpha))
        return GroupAdvantage()(rollouts)


@objective("tw-grpo", paper=132)
@dataclass(frozen=True)
class TWGRPO(Preset):
    """Token-Weighted GRPO, without a KL; weights are not normalised.

    Args:
        alpha: weight of the position that divides a group most, in [1, inf); 1 for no weights.
        clip: bounds of the ratio, in (0, inf).
        clip_high: see `clip`, in (0, inf).
    """

    alpha: float = 1.7
    clip: float = 0.2
    clip_high: float = 0.28

    def __post_init__(self) -> None:
        within(self, "[1, inf)", "alpha")
        within(self, "(0, inf)", "clip", "clip_high")

    def composed(self) -> PolicyGradient:
        return PolicyGradient(
            WeighedAdvantage(self.alpha),
            clip=Clip(self.clip, self.clip_high),
            weights=(Column("focus"),),
            aggregation="token-mean",
        )
