"""Subclasses: large classes cut into clusters of the size of the smallest ones.

    m_k = max(1, floor(n_k / max(min_j n_j, delta)))                    subclasses of class k
    phi_k = mean |f - mean f| / log(n_k + 10), clipped to its 20th and 80th percentile over classes
    tau2(k) = tau1 phi_k / mean(phi);  tau1 where m_k = 1               temperature of class k

n_k samples of class k, f their features of length 1. A class is split by balanced k-means.

Source: Subclass-balancing Contrastive Learning for Long-tailed Recognition (arXiv 2306.15925). The
ratio for tau2 is the released code's; the text has an exponential.
"""

from __future__ import annotations

from math import log
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tokenry.core.balanced_clusters import balanced_kmeans
from tokenry.core.checks import in_range
from tokenry.core.errors import InputError


class Subclasses(NamedTuple):
    """ids [N]: the subclass of each sample, over all classes. temperatures [C]: tau2 of a class."""

    ids: Tensor
    temperatures: Tensor


def split_classes(
    features: Tensor,
    classes: Tensor,
    delta: int = 10,
    tau1: float = 0.1,
    generator: torch.Generator | None = None,
) -> Subclasses:
    """The subclasses of all samples.

    Args:
        features: [N, D], of images without augmentation.
        classes: [N], in 0 .. C - 1, none of them empty.
        delta: smallest size of a subclass, >= 1; default 10.
        tau1: temperature of a class that is not split; default 0.1.
        generator: draws the first centroids.

    Raises:
        InputError: a class without samples, a setting out of range, features that are 0.
    """
    counts, ids = subclass_counts(classes.bincount(), delta), torch.zeros_like(classes)
    first = counts.cumsum(0) - counts
    for k, parts in enumerate(counts.tolist()):
        rows = (classes == k).nonzero().flatten()
        assigned, _ = balanced_kmeans(features[rows], parts, generator=generator)
        ids[rows] = first[k] + assigned
    return Subclasses(ids, class_temperatures(features, classes, counts, tau1))


def subclass_counts(sizes: Tensor, delta: int = 10) -> Tensor:
    """m [C] from the sizes of classes n [C]. InputError for a class without samples."""
    in_range("delta", delta, "[1, inf)", integer=True)
    if not len(sizes) or int(sizes.min()) < 1:
        raise InputError("a class has no samples: number classes from 0, without gaps")
    return (sizes // max(int(sizes.min()), delta)).clamp_min(1)


def class_temperatures(
    features: Tensor, classes: Tensor, counts: Tensor, tau1: float = 0.1
) -> Tensor:
    """tau2 [C] from features [N, D], classes [N] and m [C]; tau1 where no class is spread."""
    in_range("tau1", tau1, "(0, inf)")
    unit = normalize(features.float(), dim=-1)
    spread = torch.stack([_spread(unit[classes == k]) for k in range(len(counts))])
    low, high = spread.quantile(spread.new_tensor([0.2, 0.8]))
    phi = spread.clamp(low, high)
    ratio = torch.where(phi.mean() > 0, phi / phi.mean().clamp_min(1e-12), 1.0)
    return tau1 * torch.where(counts > 1, ratio, 1.0)


def _spread(unit: Tensor) -> Tensor:
    """phi of a class before it is clipped."""
    return (unit - unit.mean(0)).norm(dim=-1).mean() / log(len(unit) + 10)
