"""Advantages: how much better each token turned out than expected.

    reward_to_go    G_t = r_t + gamma G_{t+1}
    gae             delta_t = r_t + gamma V_{t+1} - V_t,    A_t = delta_t + gamma lam A_{t+1}
                    returns = A + V, what a critic is fitted to
    positional_baseline     V_t = mean of G_t over the rows that have a t-th token: values without
                    a critic
    whiten          (A - mean) / std over all target tokens of the batch

All take and give [..., T] with the bool mask of the target tokens. r_t is the reward for token t,
V_t the value of the state *before* it; behind the last target token both are 0. Tokens outside the
mask are no steps: the recursions pass over them (a tool's output between two of the policy's own
turns costs no discount), whatever stands there, even NaN, counts as absent, and results there are
0. Everything runs in float32 at least, without gradient.

Source of gae: High-Dimensional Continuous Control Using Generalized Advantage Estimation
(arXiv 1506.02438), eqs. 11-16.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenry.core.aggregate import full_precision, masked_mean, masked_sum
from tokenry.core.checks import in_range
from tokenry.core.errors import ShapeError
from tokenry.learn.policy.groups import RESOLUTION, over_group


@torch.no_grad()
def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Generalized advantage estimates and returns, [..., T] each.

    lam trades bias for variance: 1 gives reward_to_go - values, 0 gives delta. gamma, lam: in
    [0, 1].
    """
    in_range("gamma", gamma, "[0, 1]")
    in_range("lam", lam, "[0, 1]")
    rewards, values = masked(rewards, mask), masked(values, mask)
    advantages = torch.zeros_like(rewards)
    later = torch.zeros_like(rewards[..., 0])
    next_value = torch.zeros_like(later)
    for t in reversed(range(rewards.shape[-1])):
        step = mask[..., t]
        delta = rewards[..., t] + gamma * next_value - values[..., t]
        later = torch.where(step, delta + gamma * lam * later, later)
        next_value = torch.where(step, values[..., t], next_value)
        advantages[..., t] = torch.where(step, later, 0.0)
    return advantages, advantages + values


def reward_to_go(rewards: Tensor, mask: Tensor, gamma: float = 1.0) -> Tensor:
    """Discounted sum of this and all later rewards of the row."""
    return gae(rewards, torch.zeros_like(rewards), mask, gamma, 1.0)[0]


@torch.no_grad()
def positional_baseline(
    returns: Tensor, mask: Tensor, group: Tensor | None = None, *, leave_one_out: bool = False
) -> Tensor:
    """For each row's n-th target token the mean return of the n-th target tokens, [B, T].

    group: [B], average among the rows of one prompt only. leave_one_out: without the row itself,
    which keeps the estimate unbiased; a row with no peer at a position then has the baseline 0.
    """
    returns = masked(returns, mask)
    if returns.ndim != 2:
        raise ShapeError(f"a baseline over a batch needs returns [B, T], got {[*returns.shape]}")
    order = (mask.cumsum(-1) - 1).clamp_min(0)
    by_order = torch.zeros_like(returns).scatter_add(1, order, returns)
    present = torch.zeros_like(returns).scatter_add(1, order, mask.to(returns.dtype))
    peers = torch.zeros_like(mask[:, 0], dtype=torch.long) if group is None else group

    def total(of: Tensor) -> Tensor:
        sums = over_group(of, peers)
        return sums - of if leave_one_out else sums

    mean = total(by_order) / total(present).clamp_min(1.0)
    return masked(mean.gather(1, order), mask)


@torch.no_grad()
def whiten(
    advantages: Tensor,
    mask: Tensor,
    *,
    shift_mean: bool = True,
    eps: float = 1e-8,
    of: Tensor | None = None,
) -> Tensor:
    """Mean 0 and variance 1 over the target tokens; equal advantages become exactly 0.

    Args:
        shift_mean: False scales only, so that no advantage changes its sign. The variance is that
            of the tokens themselves (divided by their number).
        of: what the advantages are differences of, [..., T]. Where none is further from their
            mean than `RESOLUTION` (1e-6) of the largest magnitude, that is rounding: all equal.
    """
    advantages = masked(advantages, mask)
    mean = masked_mean(advantages, mask)
    centred = masked(advantages - mean, mask)
    spread = (masked_sum(centred.square(), mask) / mask.sum().clamp_min(1)).sqrt()
    # the largest deviation from the mean, beside what was subtracted to get there
    size = torch.maximum(advantages.abs(), masked(advantages if of is None else of, mask).abs())
    equal = centred.abs().amax() <= RESOLUTION * size.amax()  # of a NaN it is False
    return torch.where(equal, 0.0, (centred if shift_mean else advantages) / (spread + eps))


def masked(values: Tensor, mask: Tensor) -> Tensor:
    """The values in float32 (or float64) where the mask is True, 0 elsewhere."""
    if values.shape != mask.shape or mask.dtype != torch.bool:
        raise ShapeError(
            f"the mask must be bool of shape {[*values.shape]} like the values, "
            f"got {[*mask.shape]} {mask.dtype}"
        )
    return torch.where(mask, full_precision(values), 0.0)
