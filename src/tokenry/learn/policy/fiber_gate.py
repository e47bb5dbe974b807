"""Fiber gate: log-ratios of tokens, bounded apart from the drift of their completion.

See `learn.policy.fiberpo` for the equations; here are the functions of tensors alone.

Source: Fibration Policy Optimization (arXiv 2603.08239), as JoyAI-LLM Flash (arXiv 2604.03044)
states it; how coarser levels compose is reconstructed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tokenry.learn.policy.groups import over_group

Budgets = tuple[float, float]  # C+, C-


def aggregate_gate(value: Tensor, budget: float, length: Tensor) -> Tensor:
    """g(s, C, T) of aggregates, with tokens T of the same shape."""
    size = value.abs()
    back = value.sign() * (length + 1) * budget - length * value
    gated = torch.where(size <= budget, value, back)
    return torch.where(size * length < (length + 1) * budget, gated, 0.0)


def sign_aggregates(
    log_ratio: Tensor, mask: Tensor, node: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """S+, S- and T of each row's node, [B] each; node: [B], None for the row itself."""
    node = torch.arange(len(mask), device=mask.device) if node is None else node
    kept = log_ratio.masked_fill(~mask, 0.0)
    sums = torch.stack([kept.clamp_min(0).sum(-1), (-kept).clamp_min(0).sum(-1)], -1)
    length = over_group(mask.sum(-1).to(kept.dtype), node)
    positive, negative = (over_group(sums, node) / length.clamp_min(1)[:, None]).unbind(-1)
    return positive, negative, length.clamp_min(1)


def fiber_gate(
    log_ratio: Tensor,
    mask: Tensor,
    budgets: Budgets,
    eps: float,
    above: Sequence[tuple[Tensor, Budgets]] = (),
) -> Tensor:
    """Gated log-ratios [B, T], 0 outside the mask.

    Args:
        log_ratio: [B, T]. budgets: of a completion. eps: of a token's residual.
        mask: see `log_ratio`.
        above: coarser levels, coarsest first: each row's node [B], and the level's budgets.
    """
    rest, base = log_ratio, torch.zeros_like(log_ratio[:, 0])
    for node, own in above:
        positive, negative, length = sign_aggregates(rest, mask, node)
        base = base + _base(positive, negative, length, own)
        rest = rest - (positive - negative)[:, None]
    positive, negative, length = sign_aggregates(rest, mask)
    base = base + _base(positive, negative, length, budgets)
    upward = rest >= 0
    same = torch.where(upward, positive[:, None], -negative[:, None])
    opposite = torch.where(upward, -negative[:, None], positive[:, None])
    residual = (rest - same).clamp(-eps, eps) - opposite.clamp(-eps, eps)
    return (base[:, None] + residual).masked_fill(~mask, 0.0)


def _base(positive: Tensor, negative: Tensor, length: Tensor, budgets: Budgets) -> Tensor:
    up, down = budgets
    return aggregate_gate(positive, up, length) - aggregate_gate(negative, down, length)
