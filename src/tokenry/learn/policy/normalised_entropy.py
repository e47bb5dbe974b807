"""Normalised entropy: how uncertain a token was among those of a batch, in [-1, 1].

    x = log max(H, 1e-8),   c = the pivot quantile of x over the tokens,   d = x - c
    h = d / max d   where d > 0,    d / |min d|   elsewhere

0 at the pivot, 1 at the least sure token, -1 at the surest; no scale of H matters. What follows it
when sampling is a temperature of its own for every token, T (1 + tau h), h in the range of earlier
rollouts and clamped.

Source: From Uniform to Heterogeneous: Tailoring Policy Optimization to Every Token's Nature (arXiv
2509.16591) and its code, whose further division of d by its spread cancels; there the lower side
is divided by the negative minimum, which turns its sign: here it keeps it, as the use of h needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tokenry.core.aggregate import full_precision
from tokenry.core.checks import in_range, within
from tokenry.core.errors import ShapeError
from tokenry.core.signals import entropy as logits_entropy

FLOOR = 1e-8  # nats


class EntropyRange(NamedTuple):
    """c, max d and |min d| of some tokens, scalars."""

    pivot: Tensor
    rise: Tensor
    fall: Tensor

    def place(self, entropy: Tensor) -> Tensor:
        """h of entropies of any shape, nats, clamped to [-1, 1]."""
        gap = full_precision(entropy).clamp_min(FLOOR).log() - self.pivot
        width = torch.where(gap > 0, self.rise, self.fall)
        return (gap / width.masked_fill(width <= 0, 1.0)).clamp(-1, 1)


@torch.no_grad()
def normalised_entropy(
    entropy: Tensor, mask: Tensor, pivot: float = 0.8
) -> tuple[Tensor, EntropyRange]:
    """h [B, T], 0 outside the mask, and the range of the tokens in it.

    Args:
        entropy: nats, [B, T]. mask: [B, T] bool.
        pivot: in [0, 1]; of n tokens the one of rank round(pivot (n - 1)) has h = 0.
    """
    in_range("pivot", pivot, "[0, 1]")
    if entropy.shape != mask.shape:
        raise ShapeError(f"entropy {[*entropy.shape]} and mask {[*mask.shape]} must have one shape")
    values = full_precision(entropy)[mask].clamp_min(FLOOR).log()
    if not len(values):
        nothing = values.new_zeros(())
        return torch.zeros_like(full_precision(entropy)), EntropyRange(nothing, nothing, nothing)
    centre = values.kthvalue(round(pivot * (len(values) - 1)) + 1).values
    found = EntropyRange(centre, values.max() - centre, centre - values.min())
    return torch.where(mask, found.place(entropy), 0.0), found


@dataclass(frozen=True)
class AdaptiveTemperature:
    """A processor of `decode.sample`: logits / (1 + tau h), before its own temperature.

    Args:
        known: the range of the tokens of earlier rollouts.
        tau: how far the temperature may move, in [0, 1).
    """

    known: EntropyRange
    tau: float = 0.05

    def __post_init__(self) -> None:
        within(self, "[0, 1)", "tau")

    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        place = self.known.place(logits_entropy(logits))
        return logits / (1 + self.tau * place)[:, None].to(logits.dtype)
