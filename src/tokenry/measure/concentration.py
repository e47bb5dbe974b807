"""Concentration: how few tokens carry how much of a quantity that is never negative.

With the values sorted, d_1 >= d_2 >= ... >= d_N >= 0, and D their sum,

    carried(n)   = (d_1 + ... + d_n) / D                    the mass that the n largest carry
    carrying(m)  = min { n / N : carried(n) >= m }          the share of tokens that carry a share m

A quantity that is spread evenly has carrying(m) = m; one that sits in few tokens far less.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenry.core.checks import in_range
from tokenry.core.errors import InputError

ROUNDING = 1e-6  # below 0 by no more is what float32 leaves of a divergence of 0


@dataclass(frozen=True)
class Concentration:
    """Values of tokens, [N]: finite and >= 0."""

    values: Tensor

    def __post_init__(self) -> None:
        if self.values.ndim != 1 or not len(self.values):
            raise InputError(f"a concentration is of values [N], N >= 1: {[*self.values.shape]}")
        wrong = self.values[~(self.values.isfinite() & (self.values >= -ROUNDING))]
        if len(wrong):
            raise InputError(f"{float(wrong[0])} has no share: values must be finite and >= 0")
        object.__setattr__(self, "values", self.values.double().clamp_min(0.0))

    def carried(self) -> Tensor:
        """The mass that the n largest values carry, n = 0..N, [N + 1]; all 0 of values 0."""
        sums = self.values.sort(descending=True).values.cumsum(0)
        total = sums[-1] if sums[-1] > 0 else torch.ones(())
        return torch.cat([sums.new_zeros(1), sums / total])

    def carrying(self, mass: float) -> float:
        """The smallest share of tokens that carry at least the share `mass`, in [0, 1], of all.

        0 where there is nothing to carry.
        """
        in_range("mass", mass, "[0, 1]")
        carried = self.carried()
        # the whole is what the sums end with, whatever they were rounded to
        enough = (carried >= mass * float(carried[-1])).nonzero()
        return int(enough[0]) / len(self.values)

    def below(self, bound: float) -> float:
        """The share of values below `bound`."""
        return float((self.values < bound).double().mean())

    def above(self, bound: float) -> float:
        """The share of values above `bound`."""
        return float((self.values > bound).double().mean())

    def largest(self, share: float) -> Tensor:
        """[N] bool: the ceil(share N) largest values, share in [0, 1]; ties by the first place."""
        in_range("share", share, "[0, 1]")
        count = int(-(-share * len(self.values) // 1))
        chosen = torch.zeros_like(self.values, dtype=torch.bool)
        chosen[self.values.argsort(descending=True, stable=True)[:count]] = True
        return chosen

    def curve(self) -> list[tuple[float, float]]:
        """(share of tokens, share of the mass that they carry), the largest values first."""
        count = len(self.values)
        return [(n / count, mass) for n, mass in enumerate(self.carried().tolist())]


def overlap(one: Tensor, other: Tensor) -> float:
    """|A and B| / |A or B| of two sets given as masks [N] bool (Jaccard); 1 of two empty ones."""
    either = int((one | other).sum())
    return int((one & other).sum()) / either if either else 1.0
