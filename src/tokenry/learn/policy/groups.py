"""Groups: completions of one prompt against each other.

    GroupAdvantage    A_i = (R_i - mean_group R) / (std_group R + eps)
    has_spread        max R - min R > 1e-6 max |R| in the group: less is rounding, so no spread
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
from tokenry.learn.policy.rollout_batch import RolloutBatch, finite_rewards

RESOLUTION = 1e-6  # of a group's largest |reward|: 8 roundings in float32, the dtype of rewards


@dataclass(frozen=True)
class GroupAdvantage:
    """Rewards against those of the other completions of the same prompt, [B].

    center: subtract the group's mean (leave_one_out: of the others only, which is unbiased).
    scale: divide by the standard deviation over the "group" or the "batch", or by nothing.
    unbiased: n - 1 in its denominator. eps: added to it, >= 0. Several rewards are summed.

    A group without spread (`has_spread`) gives exactly 0 wherever its mean is subtracted or it is
    divided by a spread that is none; so does a group of one completion.
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
    """`GroupAdvantage` of rewards [B] in groups [B].

    Raises:
        ShapeError: the shapes differ.
        InputError: a reward is NaN or infinite.
    """
    if reward.shape != group.shape:
        raise ShapeError(f"reward {[*reward.shape]} and group {[*group.shape]} must be [B] each")
    size = over_group(torch.ones_like(reward), group)
    spread = has_spread(reward, group)
    centred = torch.where(spread, reward - over_group(reward, group) / size, 0.0)
    advantage = centred if center else reward
    if center and leave_one_out:
        advantage = centred * size / (size - 1).clamp_min(1)  # r - mean of the others
    if scale == "none":
        return advantage
    if scale == "group":
        freedom = (size - 1).clamp_min(1) if unbiased else size
        deviation = (over_group(centred.square(), group) / freedom).sqrt()
    else:
        spread = has_spread(reward, torch.zeros_like(group))
        deviation = (
            reward.std(correction=int(unbiased)) if len(reward) > 1 else reward.new_zeros(())
        )
    return torch.where(spread, advantage / torch.where(spread, deviation + eps, 1.0), 0.0)


def most_of_group(values: Tensor, group: Tensor) -> Tensor:
    """The largest value of each row's group, [B] from values and groups [B]."""
    peers = group.unique(return_inverse=True)[1]
    if not len(peers):
        return values
    most = values.new_zeros(int(peers.max()) + 1)
    return most.scatter_reduce(0, peers, values, "amax", include_self=False)[peers]


def has_spread(reward: Tensor, group: Tensor) -> Tensor:
    """True on the rows of groups whose rewards [B] differ by more than `RESOLUTION` times the
    largest of their magnitudes, [B].

    Raises:
        InputError: a reward is NaN or infinite.
    """
    reward = finite_rewards(reward)
    most, negated, largest = (
        most_of_group(values, group) for values in (reward, -reward, reward.abs())
    )
    return most + negated > RESOLUTION * largest


def some_spread(rollouts: RolloutBatch, advantage: Tensor) -> Tensor:
    """True on the completions of groups whose rewards differ, [B]."""
    return has_spread(rollouts.total_reward, rollouts.group)


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
