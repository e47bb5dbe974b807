"""Balanced k-means: clusters of nearly equal sizes, by cosine.

    s_kn = cos(c_k, x_n) / sum_j |cos(c_k, x_j)|
    all pairs (k, n) by falling s: n joins k if it is free and k has fewer than floor(N / K) members
    the N mod K points left join in the same order, at most one more for each cluster
    c_k = mean of its members;   until (sum_k |c_k - its last|)^2 < tolerance

The first centroids are drawn as in k-means++: each with a probability that grows with the squared
distance from those before it.

Source: Subclass-balancing Contrastive Learning for Long-tailed Recognition (arXiv 2306.15925).
Ours: absolute values in the denominator, which change nothing where no cosine is negative, and the
order of the points that are left.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tokenry.core.checks import in_range
from tokenry.core.errors import InputError, ShapeError


@torch.no_grad()
def balanced_kmeans(
    points: Tensor,
    clusters: int,
    *,
    iterations: int = 50,
    tolerance: float = 1e-4,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Split points into clusters whose sizes differ by at most one.

    Args:
        points: [N, D], none of them 0; only their directions count.
        clusters: K, in [1, N].
        iterations: at most so many, >= 1; default 50.
        tolerance: of the moves of the centroids, >= 0; default 1e-4.
        generator: draws the first centroids; None for torch's own.

    Returns:
        The cluster of each point, [N], and the centroids, [K, D]: means of unit vectors.

    Raises:
        InputError: K out of range, points that are 0 or not finite. ShapeError: not [N, D].
    """
    if points.ndim != 2:
        raise ShapeError(f"points must be [N, D], got {list(points.shape)}")
    in_range("clusters", clusters, f"[1, {len(points)}]", integer=True)
    in_range("iterations", iterations, "[1, inf)", integer=True)
    in_range("tolerance", tolerance, "[0, inf)")
    lengths = points.float().norm(dim=-1)
    if not bool((torch.isfinite(lengths) & (lengths > 0)).all()):
        raise InputError("a point is 0 or not finite: it has no direction")
    unit = points.float() / lengths[:, None]
    centroids = unit[_seeds(unit, clusters, generator)]
    assigned = torch.zeros(len(unit), dtype=torch.long, device=unit.device)
    for _ in range(iterations):
        assigned = _balanced(normalize(centroids, dim=-1) @ unit.T)
        sums = torch.zeros_like(centroids).index_add_(0, assigned, unit)
        moved = sums / assigned.bincount(minlength=clusters)[:, None]
        shift = (moved - centroids).norm(dim=-1).sum() ** 2
        centroids = moved
        if shift < tolerance:
            break
    return assigned, centroids


def _seeds(unit: Tensor, clusters: int, generator: torch.Generator | None) -> list[int]:
    """k-means++: different points, far from each other."""
    chosen = [int(torch.randint(len(unit), (1,), generator=generator))]
    nearest = torch.full((len(unit),), torch.inf)
    free = torch.ones(len(unit))
    while len(chosen) < clusters:
        nearest = nearest.minimum((unit - unit[chosen[-1]]).square().sum(-1).cpu())
        free[chosen[-1]] = 0
        weight = nearest * free
        weight = weight if weight.sum() > 0 else free  # the rest are copies of those chosen
        chosen.append(int(torch.multinomial(weight, 1, generator=generator)))
    return chosen


def _balanced(cosines: Tensor) -> Tensor:
    """The clusters of the points, from [K, N]; see the module."""
    clusters, count = cosines.shape
    similarity = cosines / cosines.abs().sum(-1, keepdim=True).clamp_min(1e-12)
    order = similarity.flatten().argsort(descending=True, stable=True).tolist()
    assigned, sizes = [-1] * count, [0] * clusters
    for most in (count // clusters, count // clusters + 1):
        for pair in order:
            cluster, point = divmod(pair, count)
            if assigned[point] < 0 and sizes[cluster] < most:
                assigned[point] = cluster
                sizes[cluster] += 1
    return torch.tensor(assigned, device=cosines.device)
