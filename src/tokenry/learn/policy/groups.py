"""Groups: completions of one prompt against each other.

    GroupAdvantage    A_i = (R_i - mean_group R) / (std_group R + eps)
    some_spread       leave out groups whose rewards are all equal: their advantages say nothing
    balanced          mean over groups of (G+/G) (token mean where A > 0) + (G-/G) (where A < 0)

Sources: DeepSeekMath (arXiv 2402.03300), eq. 3; DAPO (arXiv 2503.14476), dynamic sampling; Balanced
Aggregation (arXiv 2605.04077).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tokenry.core.aggregate import per_sequence
from tokenry.core.checks import one_of, within
from tokenry.core.errors import ShapeError
from tokenry.learn.policy.rollout_batch import RolloutBatch


@dataclass(frozen=True)
class GroupAdvantage:
    """Rewards against those of the other completions of the same prompt, [B].

    center: subtract the group's mean (leave_one_out: of the others only, which is unbiased).
    scale: divide by the standard deviation over the "group" or the "batch", or by nothing.
    unbiased: n - 1 in its denominator. eps: added to it, >= 0; a group of equal rewards gives 0.
    Several rewards are summed.
    """

    center: bool = True
    scale: Literal["group", "batch", "none"] = "group"
    eps: float = 1e-4
    leave_one_out: bool = False
    unbiased: bool = True

    def __post_init__(self) -> None:
        one_of("scale", self.scale, ("group", "batch", "none"))
        within(self, "[0, inf)", "eps")

    def __call__(self, rollouts: RolloutBatch) -> Tensor:
        return group_advantage(rollouts.total_reward, rollouts.group, **vars(self))


def group_advantage(
    reward: Tensor,
    group: Tensor,
    *,
    center: bool = True,
    scale: str = "group",
    eps: float = 1e-4,
    leave_one_out: bool = False,
    unbiased: bool = True,
) -> Tensor:
    """`GroupAdvantage` of rewards [B] in groups [B]."""
    if reward.shape != group.shape:
        raise ShapeError(f"reward {[*reward.shape]} and group {[*group.shape]} must be [B] each")
    size = over_group(torch.ones_like(reward), group)
    mean = over_group(reward, group) / size
    centred = reward - mean
    advantage = centred if center else reward
    if center and leave_one_out:
        advantage = centred * size / (size - 1).clamp_min(1)  # r - mean of the others
    if scale == "group":
        freedom = (size - 1).clamp_min(1) if unbiased else size
        return advantage / ((over_group(centred.square(), group) / freedom).sqrt() + eps)
    if scale == "batch":
        spread = reward.std(correction=int(unbiased)) if len(reward) > 1 else reward.new_zeros(())
        return advantage / (spread + eps)
    return advantage


def some_spread(rollouts: RolloutBatch, advantage: Tensor) -> Tensor:
    """True on the completions of groups whose rewards differ, [B]."""
    reward = rollouts.total_reward
    peers = rollouts.group.unique(return_inverse=True)[1]
    count = int(peers.max()) + 1
    most = reward.new_full((count,), -torch.inf).scatter_reduce(0, peers, reward, "amax")
    least = reward.new_full((count,), torch.inf).scatter_reduce(0, peers, reward, "amin")
    return (most > least)[peers]


@torch.no_grad()
def balanced_weights(advantage: Tensor, mask: Tensor, group: Tensor) -> Tensor:
    """[B, 1], the w of Balanced Aggregation's sum_bt w l: (G_s / G) / n_s over the groups' number.

    G_s: completions of the group whose advantage has this row's sign, n_s: their tokens, G: all
    completions of the group, those with advantage 0, which weigh nothing, included. The sign of a
    completion is that of its mean advantage.
    """
    sign = per_sequence(advantage, mask, "mean").sign()
    peers = group.unique(return_inverse=True)[1]
    kind = peers * 3 + (sign.long() + 1)
    ones = torch.ones_like(sign)
    share = over_group(ones, kind) / over_group(ones, peers)
    tokens = over_group(mask.sum(-1).to(sign.dtype), kind).clamp_min(1)
    return torch.where(sign == 0, 0.0, share / tokens / (int(peers.max()) + 1))[:, None]


def over_group(values: Tensor, group: Tensor) -> Tensor:
    """Each row's sum [B, ...] over the rows of its group."""
    peers = group.unique(return_inverse=True)[1]
    sums = values.new_zeros(int(peers.max()) + 1, *values.shape[1:])
    return sums.index_add(0, peers, values)[peers]
