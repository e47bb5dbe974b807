"""Down-sampling: the completions whose advantages vary most, and their decisive tokens.

A subset of size N of greatest variance holds the k smallest and the N - k largest values for some
k, so trying all k is exact. Of a completion's tokens those of largest |A| H stay.

Source: Learning More with Less: A Dynamic Dual-Level Down-Sampling Framework for Efficient Policy
Optimization (arXiv 2509.22115). Reconstructed: roundings, ties and the second level's number.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tokenry.core.checks import in_range
from tokenry.core.errors import ShapeError
from tokenry.learn.policy.groups import has_spread


@torch.no_grad()
def max_variance_subset(values: Tensor, k: int) -> Tensor:
    """Indices [k], ascending, of the k of values [n] with the greatest variance.

    Raises:
        InputError: k is not in [1, n].
    """
    in_range("k", k, f"[1, {len(values)}]", integer=True)
    order = values.sort(stable=True).indices
    centred = (values - values.mean()).double()[order]
    sums = torch.stack([centred, centred.square()]).cumsum(-1)
    sums = torch.nn.functional.pad(sums, (1, 0))
    low = torch.arange(k + 1, device=values.device)  # how many of the smallest
    mean, square = (sums[:, low] + sums[:, -1:] - sums[:, len(values) - k + low]) / k
    best = int((square - mean.square()).argmax())
    return torch.cat([order[:best], order[len(values) - k + best :]]).sort().values


@torch.no_grad()
def select_rollouts(
    advantage: Tensor, group: Tensor, count: int, share: float | None = 1.0
) -> Tensor:
    """True on the completions kept, [B]; advantage, group: [B]. share: of the second level, in
    (0, 1]; None: only the first level."""
    in_range("share", share, "(0, 1]", optional=True)
    kept = torch.zeros_like(group, dtype=torch.bool)
    for number in group.unique():
        rows = (group == number).nonzero()[:, 0]
        kept[rows[max_variance_subset(advantage[rows], min(count, len(rows)))]] = True
    if share is None:
        return kept
    pool = (kept & has_spread(advantage, group)).nonzero()[:, 0]
    kept = torch.zeros_like(kept)
    if len(pool):
        number = min(len(pool), max(2, math.ceil(share * len(pool) - 1e-9)))
        kept[pool[max_variance_subset(advantage[pool], number)]] = True
    return kept


@torch.no_grad()
def select_tokens(advantage: Tensor, entropy: Tensor, mask: Tensor, share: float) -> Tensor:
    """True on the tokens kept, [B, T] like all three: of each row ceil(share n)."""
    if not advantage.shape == entropy.shape == mask.shape:
        raise ShapeError(
            f"advantage {[*advantage.shape]}, entropy {[*entropy.shape]} and mask "
            f"{[*mask.shape]} must have one shape"
        )
    in_range("share", share, "(0, 1]")
    score = (advantage.abs() * entropy).masked_fill(~mask, -torch.inf)
    rank = score.sort(dim=-1, descending=True, stable=True).indices.argsort(-1)
    wanted = (share * mask.sum(-1, keepdim=True).double() - 1e-9).ceil()  # 0.7 * 10 is 7
    return mask & (rank < wanted)
