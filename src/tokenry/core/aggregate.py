"""From per-token values to one number: the reductions that the literature uses, with one mask rule.

With v_bt the values, w_bt the weights (1 by default, 0 where masked) and S the rows that have at
least one token of positive weight:

    sequence-mean     1/|S| Σ_b (Σ_t w v / Σ_t w)     every sequence counts the same
    token-mean        Σ_bt w v / Σ_bt w               every token counts the same
    constant-length   1/B Σ_b Σ_t w v / length        every token the same, whatever the batch holds
    sequence-sum      1/|S| Σ_b Σ_t w v               the mean of sequence totals

Values under the mask may be NaN or infinite: neither they nor their gradients leak. A mean over
nothing is 0. A row without tokens is no sequence and does not count in the denominator, except
under constant-length, whose denominator B · length by definition does not look at the mask.

A token of weight 0 is as if masked. Weights must be finite and not negative; weights normalise
the means, so only their proportions matter there (within a row for sequence-mean).
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from tokenry.core.checks import in_range
from tokenry.core.errors import InputError, ShapeError, UnknownNameError

Mode = Literal["sequence-mean", "token-mean", "constant-length", "sequence-sum"]
MODES: tuple[str, ...] = get_args(Mode)


def aggregate(
    values: Tensor,
    mask: Tensor,
    mode: Mode = "sequence-mean",
    weights: Tensor | None = None,
    length: float | None = None,
) -> Tensor:
    """Reduce values [B, T] to a scalar, as in the table above.

    `weights` is [B, T] or [B, 1]; `length` (tokens, in (0, inf)) is needed by constant-length only.
    """
    if values.ndim != 2:
        raise ShapeError(f"values must be [B, T], got {list(values.shape)}")
    if mode not in MODES:
        raise UnknownNameError("aggregation", mode, MODES)
    if mode == "constant-length":
        in_range("length, in tokens, under constant-length,", length, "(0, inf)")
        assert length is not None
        return masked_sum(values, mask, weights=weights) / (length * max(len(values), 1))
    if length is not None:
        raise InputError(f"length={length} has a meaning under constant-length only, not {mode}")
    if mode == "token-mean":
        return masked_mean(values, mask, weights=weights)
    per_row = per_sequence(values, mask, "mean" if mode == "sequence-mean" else "sum", weights)
    return masked_mean(per_row, _counted(values, mask, weights)[0].any(-1))


def per_sequence(
    values: Tensor,
    mask: Tensor,
    reduction: Literal["sum", "mean"] = "sum",
    weights: Tensor | None = None,
) -> Tensor:
    """One value per row, [..., T] -> [...]; 0 for a row without tokens."""
    if reduction not in ("sum", "mean"):
        raise UnknownNameError("reduction", reduction, ("sum", "mean"))
    reduce = masked_sum if reduction == "sum" else masked_mean
    return reduce(values, mask, dim=-1, weights=weights)


def masked_sum(
    values: Tensor, mask: Tensor, dim: int | None = None, weights: Tensor | None = None
) -> Tensor:
    """Σ weights · values where the mask is True, over one dimension or (None) all of them."""
    counted, weights = _counted(values, mask, weights)
    values = full_precision(values).masked_fill(~counted, 0.0)
    weighted = values if weights is None else values * weights
    return weighted.sum() if dim is None else weighted.sum(dim)


def masked_mean(
    values: Tensor, mask: Tensor, dim: int | None = None, weights: Tensor | None = None
) -> Tensor:
    """masked_sum divided by the weights' (without weights: the mask's) sum; 0 where that is 0."""
    total = masked_sum(values, mask, dim, weights)
    counted, weights = _counted(values, mask, weights)
    mass = counted.to(total.dtype) if weights is None else weights
    mass = mass.sum() if dim is None else mass.sum(dim)
    return total / mass.masked_fill(mass == 0, 1.0)


def full_precision(values: Tensor) -> Tensor:
    """At least float32: half-precision sums over a long completion lose whole tokens."""
    return values if values.dtype == torch.float64 else values.float()


def _counted(values: Tensor, mask: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Which values count, and their weights (0 elsewhere), after all checks."""
    if mask.shape != values.shape or mask.dtype != torch.bool:
        raise ShapeError(
            f"the mask must be bool of shape {list(values.shape)} like the values, "
            f"got {list(mask.shape)} {mask.dtype}"
        )
    if weights is None:
        return mask, None
    if weights.shape not in (values.shape, (*values.shape[:-1], 1)):
        raise ShapeError(
            f"weights must be {list(values.shape)} like the values, or one per row "
            f"{[*values.shape[:-1], 1]}; got {list(weights.shape)}"
        )
    weights = full_precision(weights).expand_as(values)
    wrong = mask & ~((weights >= 0) & weights.isfinite())
    if wrong.any():
        raise InputError(
            f"weights must be finite and not negative; {int(wrong.sum())} are not, "
            f"the first is {weights[wrong][0].item()}"
        )
    # a weight that is being learned needs its gradient at 0 too
    counted = mask if weights.requires_grad else mask & (weights > 0)
    return counted, weights.masked_fill(~counted, 0.0)
