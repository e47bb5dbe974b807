"""Token curriculum: which tokens of a text are thought about, and for how long.

With the progress p in [0, 1] and three bins of positions (easy, medium, hard, by the entropy of the
next token):

    budget       B = max( least, floor( start gamma^p ) )                  tokens of thinking
    length       r = most l / B  up to l = B,   most (2B - l) / B  up to 2B,   0 beyond
    curriculum   chances of the bins: `first` before p = t1, `last` from t2 on, linear between
    position     a bin by its chance, of those that are not empty, then a position in it, evenly

Source: Reinforcement Mid-Training (arXiv 2509.24375). Reconstructed: the thresholds (terciles), the
two distributions, most = 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tokenry.core.checks import in_range
from tokenry.core.errors import InputError

Chances = tuple[float, float, float]
FIRST: Chances = (0.6, 0.3, 0.1)
LAST: Chances = (0.1, 0.3, 0.6)


def token_budget(progress: float, start: int = 800, least: int = 1, gamma: float = 0.2) -> int:
    """B, tokens of thinking, at a progress in [0, 1].

    Args:
        start: the first budget, in [1, inf). least: the smallest, in [1, inf). gamma: in (0, 1].
    """
    in_range("progress", progress, "[0, 1]")
    in_range("gamma", gamma, "(0, 1]")
    in_range("start", start, "[1, inf)", integer=True)
    in_range("least", least, "[1, inf)", integer=True)
    return max(least, math.floor(start * gamma**progress + 1e-9))


def length_reward(length: Tensor, budget: Tensor, most: float = 1.0) -> Tensor:
    """r of thinking lengths, of their shape; budgets > 0, which broadcast."""
    return most * (1 - (length - budget).abs() / budget).clamp_min(0)


def curriculum(
    progress: float, first: Chances = FIRST, last: Chances = LAST, t1: float = 0.3, t2: float = 0.7
) -> Tensor:
    """Chances of the bins, [3], at a progress in [0, 1].

    Raises:
        InputError: t1 > t2, or chances that are no distribution.
    """
    in_range("progress", progress, "[0, 1]")
    if not 0 <= t1 <= t2 <= 1:
        raise InputError(f"t1 and t2 must be 0 <= t1 <= t2 <= 1, got {t1} and {t2}")
    for chances in (first, last):
        if len(chances) != 3 or min(chances) < 0 or abs(sum(chances) - 1) > 1e-6:
            raise InputError(f"chances of three bins must be >= 0 and sum to 1, got {chances}")
    after = float(progress >= t2) if t1 == t2 else min(max((progress - t1) / (t2 - t1), 0.0), 1.0)
    return (1 - after) * torch.tensor(first) + after * torch.tensor(last)


def entropy_bins(
    entropy: Tensor, mask: Tensor, quantiles: tuple[float, float] = (1 / 3, 2 / 3)
) -> Tensor:
    """0 (easy), 1 (medium) or 2 (hard) by quantiles of the masked entropies [B, T], else -1.

    An entropy at a threshold belongs to the easier bin.
    """
    low, high = quantiles
    if not 0 <= low <= high <= 1:
        raise InputError(f"quantiles must be 0 <= low <= high <= 1, got {quantiles}")
    if not bool(mask.any()):
        return torch.full_like(mask, -1, dtype=torch.long)
    bounds = entropy[mask].float().quantile(torch.tensor(quantiles, device=entropy.device))
    above = (entropy.float()[..., None] > bounds).sum(-1)
    return above.masked_fill(~mask, -1)


def draw_positions(
    bins: Tensor, chances: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """A position of each row, [B], from bins [B, T] and their chances [3].

    Bins that are empty in a row leave their chance to the others; if all that are not have chance
    0, every position is as good.

    Raises:
        InputError: a row without any position.
    """
    among = (bins[:, None] == torch.arange(3, device=bins.device)[:, None]).double()  # [B, 3, T]
    count = among.sum(-1, keepdim=True)
    if bool((count.sum(1) == 0).any()):
        raise InputError(f"row {int((count.sum(1) == 0)[:, 0].nonzero()[0])} has no position")
    weight = (chances.to(among)[:, None] * among / count.clamp_min(1)).sum(1)
    even = (bins >= 0).double()
    weight = torch.where(weight.sum(-1, keepdim=True) > 0, weight, even).cpu()
    return torch.multinomial(weight, 1, generator=generator)[:, 0].to(bins.device)
