"""How well scores tell two kinds of things apart."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenry.core.errors import InputError


def area_under_curve(high: Tensor, low: Tensor) -> float:
    """The chance that one of `high` scores above one of `low` (the area under the ROC curve).

    AUC = P(h > l) + P(h = l) / 2 over all pairs.

    Args:
        high: scores of what should score high, [N].
        low: scores of what should score low, [M].

    Returns:
        In [0, 1]; 1/2 for scores that say nothing.

    Raises:
        InputError: one of the two is empty.
    """
    if not len(high) or not len(low):
        raise InputError(f"{len(high)} high and {len(low)} low scores: give some of both")
    ranked = low.sort().values
    below, below_or_tied = (
        torch.searchsorted(ranked, high.contiguous(), right=right) for right in (False, True)
    )
    return float((below + below_or_tied).double().mean() / 2 / len(low))


def separation(high: Tensor, low: Tensor, names: tuple[str, str]) -> dict[str, float]:
    """How far scores that should be high are above those that should be low.

    Args:
        high: see `area_under_curve`.
        low: see `area_under_curve`.
        names: what the two are, for the labels.

    Returns:
        {"mean of HIGH", "mean of LOW", "HIGH minus LOW", "AUC"}.
    """
    area, means = area_under_curve(high, low), [float(high.mean()), float(low.mean())]
    labels = (*(f"mean of {name}" for name in names), " minus ".join(names), "AUC")
    return dict(zip(labels, (*means, means[0] - means[1], area), strict=True))
