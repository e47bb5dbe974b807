"""Token Hidden Reward: how much a token's update raises the good completions of its group.

With h_t the state that predicts token t, e_t = onehot(y_t) - pi_t the error there, and P the
completions of the group with A > 0 (the right ones, when rewards are 0 and 1):

    M   = sum over P's tokens of  e h^T                      [V, D], never whole
    s_t = e_t^T M h_t,        THR_t = A s_t

THR_t is what token t's step on the output matrix alone adds to d/d(step) sum over P of log pi. Then

    A_t <- D_t (1 + sign(THR_t) p) A         p > 0 exploits (greedy accuracy), p < 0 explores
    D_t  = 1 where |s_t| > beta min over P of mean_t s_t, or where |THR_t| is among the group's
           largest `keep_ratio`; else 0, or with keep_small 1 without the tilt

"nthr" changes only tokens of bad completions with s_t above that threshold: A_t <- eta A, with
eta = 2 |1/2 - |P|/G|. Scores are those of the sampling policy, constants; the head is gone through
in tiles of the vocabulary. Groups without P or without others have A = 0 and no scores.

Source: Token Hidden Reward (arXiv 2510.03669) and, for "nthr", On the Effect of Negative Gradient
in Group Relative Deep Reinforcement Optimization (arXiv 2505.18830). Reconstructed: the form
1 + sign p, and the threshold for tokens of both signs. The identity with the output matrix's
gradient is exact.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from tokenry.core.aggregate import per_sequence
from tokenry.core.checks import one_of, within
from tokenry.learn.objective import objective
from tokenry.learn.policy.gradient import PolicyGradient
from tokenry.learn.policy.groups import group_advantage, most_of_group, over_group
from tokenry.learn.policy.presets import GRPO
from tokenry.learn.policy.rollout_batch import RolloutBatch
from tokenry.learn.policy.token_influence import token_influence

Form = Literal["thr", "nthr"]


@dataclass(frozen=True)
class InfluenceAdvantage:
    """The axis: A_t [B, T]; see `THR` for the fields."""

    p: float
    beta: float
    keep_ratio: float | None
    keep_small: bool
    form: Form

    rollout_needs: ClassVar[tuple[str, ...]] = ("policy.hidden",)

    def __call__(self, rollouts: RolloutBatch) -> Tensor:
        mask, group, scores = rollouts.mask, rollouts.group, rollouts.scores()
        advantage = group_advantage(rollouts.total_reward, group)
        good = advantage > 0
        influence = token_influence(
            scores.need("hidden"), scores.need("head"), rollouts.batch.ids, mask, good, group
        )
        threshold = self._threshold(influence, mask, good, group)
        spread = advantage[:, None].expand(mask.shape)
        if self.form == "nthr":
            share = over_group(good.to(advantage.dtype), group)
            share = share / over_group(torch.ones_like(share), group)
            shrunk = spread * (2 * (0.5 - share).abs())[:, None]
            return torch.where((spread < 0) & (influence > threshold), shrunk, spread)
        hidden_reward = spread * influence
        if self.keep_ratio is None:
            dominant = influence.abs() > threshold
        else:
            dominant = largest_share(hidden_reward.abs(), mask, group, self.keep_ratio)
        tilted = spread * (1 + hidden_reward.sign() * self.p)
        return torch.where(dominant, tilted, spread if self.keep_small else 0.0 * spread)

    def _threshold(self, influence: Tensor, mask: Tensor, good: Tensor, group: Tensor) -> Tensor:
        """beta times the least mean over a good completion of the group, [B, 1]."""
        mean = per_sequence(influence, mask, "mean").masked_fill(~good, torch.inf)
        return self.beta * -most_of_group(-mean, group)[:, None]


def largest_share(values: Tensor, mask: Tensor, group: Tensor, share: float) -> Tensor:
    """True on the ceil(share n) largest of a group's n tokens, and on those equal to the last."""
    chosen = torch.zeros_like(mask)
    for number in group.unique():
        own = mask & (group == number)[:, None]
        count = int((share * own.sum().double() - 1e-9).ceil())
        if count:
            chosen |= own & (values >= values[own].topk(count).values[-1])
    return chosen


@objective("thr", paper=127)
@dataclass(frozen=True)
class THR(GRPO):
    """GRPO whose advantages are tilted by Token Hidden Reward.

    Args:
        p: the tilt, in (-1, 1).
        threshold: beta, in (-inf, inf); negative keeps every token of groups whose good ones gain.
        keep_ratio: share of a group's tokens that is kept instead, in (0, 1]; None: by threshold.
        keep_small: tokens below keep their advantage.
        form: "thr" or "nthr".
    """

    p: float = 0.1
    threshold: float = 1.0
    keep_ratio: float | None = None
    keep_small: bool = False
    form: Form = "thr"

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, "(-1, 1)", "p")
        within(self, "(-inf, inf)", "threshold")
        within(self, "(0, 1]", "keep_ratio", optional=True)
        one_of("form", self.form, ("thr", "nthr"))

    def composed(self) -> PolicyGradient:
        advantage = InfluenceAdvantage(
            self.p, self.threshold, self.keep_ratio, self.keep_small, self.form
        )
        return replace(super().composed(), advantage=advantage)
