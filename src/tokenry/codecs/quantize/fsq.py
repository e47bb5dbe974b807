"""Finite scalar quantization: every channel is rounded to a few levels, and nothing is learned.

    b_i  = (L_i - 1)(1 - eps)/2 * tanh(z_i + s_i) - o_i      L_i values of round(b_i) at most
    o_i  = 1/2 for an even L_i, else 0;   s_i with b_i(0) = 0
    z'_i = round(b_i) / floor(L_i / 2),   gradient of b_i straight through the rounding
    id   = sum_i (round(b_i) + floor(L_i / 2)) prod_{j < i} L_j

The codebook is the grid of all combinations: prod L_i entries, all of them used, no auxiliary loss.

Source: Finite Scalar Quantization: VQ-VAE Made Simple (arXiv 2309.15505), appendix A. The shift is
atanh(o / half), with which b(0) = 0 holds; the paper's code has tan.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenry.codecs.quantize.base import Quantized, quantizer
from tokenry.core.checks import in_range
from tokenry.core.errors import InputError, ShapeError

EPS = 1e-3  # of the paper: b stays inside of the outermost levels


@quantizer("fsq")
@dataclass(frozen=True)
class FSQ:
    """Rounds each channel to its levels.

    Args:
        levels: L_i, whole, in [3, inf), one for each channel; default (8, 5, 5, 5), the paper's for
            about 2^10 codes.
    """

    levels: tuple[int, ...] = (8, 5, 5, 5)

    def __post_init__(self) -> None:
        if not self.levels:
            raise InputError("levels is empty: give the number of levels of each channel")
        for level in self.levels:
            in_range("levels", level, "[3, inf)", integer=True)

    @property
    def size(self) -> int:
        return math.prod(self.levels)

    @property
    def dim(self) -> int:
        return len(self.levels)

    def __call__(self, z: Tensor, mask: Tensor | None = None) -> Quantized:
        if z.ndim != 3 or z.shape[-1] != self.dim:
            raise ShapeError(f"z must be [B, N, {self.dim}], got {list(z.shape)}")
        if mask is not None:
            z = z.masked_fill(~mask[..., None], 0.0)
        levels = torch.tensor(self.levels, device=z.device)
        half = (levels - 1) * (1 - EPS) / 2
        offset = torch.where(levels % 2 == 0, 0.5, 0.0)
        bounded = half * torch.tanh(z.float() + torch.atanh(offset / half)) - offset
        rounded = bounded + (bounded.round() - bounded).detach()
        digits = bounded.detach().round().long() + levels // 2
        ids = (digits * self._basis(z)).sum(-1)
        values = (rounded / (levels // 2)).to(z.dtype)
        if mask is not None:
            ids, values = ids.masked_fill(~mask, 0), values.masked_fill(~mask[..., None], 0.0)
        return Quantized(values, ids, {})

    def decode(self, ids: Tensor) -> Tensor:
        levels = torch.tensor(self.levels, device=ids.device)
        digits = ids[..., None] // self._basis(ids) % levels
        return (digits - levels // 2) / (levels // 2)

    def _basis(self, like: Tensor) -> Tensor:
        """prod_{j < i} L_j."""
        sizes = torch.tensor((1, *self.levels[:-1]), device=like.device)
        return sizes.cumprod(0)
