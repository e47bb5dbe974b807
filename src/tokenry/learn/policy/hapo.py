"""HAPO: how uncertain each token was decides its advantage, its clip and what it is worth.

With h in [-1, 1] the token's normalised entropy (`learn.policy.normalised_entropy`), u its ratio:

    A      = (R - mean) / (std + 1e-6)   mean and std over all tokens of the group, each carrying
                                         its completion's R; if some |A| >= 5, GRPO's advantages
    low    = clip (1 - alpha h)  where h <= 0,  else clip       sure tokens may fall further
    high   = clip (1 + alpha h)  where h > 0,   else clip       unsure ones may rise further
    inside = 1 - low/2 < u < 1 + high/2
    A     <- A (1 + beta h)  outside where h > 0,  inside where h <= 0;  A elsewhere
    maximise the clipped surrogate with a dual bound, mean over all tokens, groups with spread

The entropies are those of the sampling policy, constants.

Source: From Uniform to Heterogeneous: Tailoring Policy Optimization to Every Token's Nature (arXiv
2509.16591) and its code. Its temperature of each token is `AdaptiveTemperature`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokenry.core.checks import within
from tokenry.learn.objective import objective
from tokenry.learn.policy.gradient import PolicyGradient, Preset
from tokenry.learn.policy.groups import group_advantage, has_spread, over_group, some_spread
from tokenry.learn.policy.normalised_entropy import normalised_entropy
from tokenry.learn.policy.rollout_batch import RolloutBatch
from tokenry.learn.policy.surrogate import Clip

COLUMN = "normalised_entropy"


@torch.no_grad()
def token_group_advantage(
    reward: Tensor, mask: Tensor, group: Tensor, largest: float = 5.0, eps: float = 1e-6
) -> Tensor:
    """A of each completion, [B], from rewards and groups [B] and the tokens, [B, T]."""
    length = mask.sum(-1).to(reward.dtype)
    tokens = over_group(length, group).clamp_min(1)
    centred = reward - over_group(length * reward, group) / tokens
    variance = over_group(length * centred.square(), group) / tokens
    advantage = torch.where(has_spread(reward, group), centred / (variance.sqrt() + eps), 0.0)
    extreme = over_group((advantage.abs() >= largest).to(reward.dtype), group) > 0
    return torch.where(extreme, group_advantage(reward, group, eps=eps), advantage)


@dataclass(frozen=True)
class TokenGroupAdvantage:
    """The axis: `token_group_advantage`; h of the sampling policy is left for the updates."""

    pivot: float
    largest: float

    rollout_needs: ClassVar[tuple[str, ...]] = ("policy.entropy",)

    def __call__(self, rollouts: RolloutBatch) -> Tensor:
        place, _ = normalised_entropy(rollouts.old_entropy, rollouts.mask, self.pivot)
        rollouts.keep(**{COLUMN: place})
        return token_group_advantage(
            rollouts.total_reward, rollouts.mask, rollouts.group, self.largest
        )


@dataclass(frozen=True)
class AdaptiveBound:
    """A bound of the clip, [B, T]: wider by alpha |h| where h has the bound's own sign."""

    clip: float
    alpha: float
    upper: bool

    def __call__(self, rollouts: RolloutBatch) -> Tensor:
        place = rollouts.batch.column(COLUMN)
        return self.clip * (1 + self.alpha * (place if self.upper else -place).clamp_min(0))


@dataclass(frozen=True)
class Redistribute:
    """The axis that scales advantages by 1 + beta h; see above."""

    low: AdaptiveBound
    high: AdaptiveBound
    beta: float

    needs: ClassVar[tuple[str, ...]] = (f"token.{COLUMN}",)

    def __call__(self, advantage: Tensor, ratio: Tensor, rollouts: RolloutBatch) -> Tensor:
        place = rollouts.batch.column(COLUMN)
        above = ratio > 1 - self.low(rollouts) / 2
        inside = above & (ratio < 1 + self.high(rollouts) / 2)
        scaled = torch.where(place > 0, ~inside, inside)
        return torch.where(scaled, advantage * (1 + self.beta * place), advantage)


@objective("hapo", paper=121)
@dataclass(frozen=True)
class HAPO(Preset):
    """Heterogeneous Adaptive Policy Optimization, on top of DAPO.

    Args:
        pivot: quantile of the entropies at which nothing changes, in [0, 1].
        clip: bound on both sides before it adapts, in (0, 1).
        alpha: how much wider it may be, in [0, 1].
        beta: how much of an advantage is redistributed, in [0, 1].
        dual: bound on what a bad token's ratio may cost, in (1, inf).
        largest: |A| from which a group has GRPO's advantages, in (0, inf].
        dynamic: leave out groups whose rewards are all equal.
    """

    pivot: float = 0.8
    clip: float = 0.2
    alpha: float = 1.0
    beta: float = 1.0
    dual: float = 10.0
    largest: float = 5.0
    dynamic: bool = True

    def __post_init__(self) -> None:
        within(self, "[0, 1]", "pivot", "alpha", "beta")
        within(self, "(0, 1)", "clip")
        within(self, "(1, inf)", "dual")
        within(self, "(0, inf]", "largest")

    def composed(self) -> PolicyGradient:
        low, high = (AdaptiveBound(self.clip, self.alpha, upper) for upper in (False, True))
        return PolicyGradient(
            TokenGroupAdvantage(self.pivot, self.largest),
            clip=Clip(low, high, self.dual),
            reshape=(Redistribute(low, high, self.beta),),
            aggregation="token-mean",
            select=(some_spread,) if self.dynamic else (),
        )
