"""Patches: a square image as one token for each of its squares, by the cosine transform.

    c = C X C^T              of a patch X [p, p], C the orthonormal cosine transform (DCT-II)
    z_i = atanh(c_i / r_i)   its d slowest waves, r_i the largest that a wave can be; the mean is
                             first shifted to [-1, 1]
    id = FSQ(z)              d numbers of levels, d = len(levels)

Nothing is learned, so that every trained tokenizer of images can be compared with it. A smaller
budget takes larger patches.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from tokenry.codecs.base import CodecTokens, codec
from tokenry.codecs.quantize.fsq import FSQ
from tokenry.core.checks import in_range, within
from tokenry.core.errors import InputError, ShapeError
from tokenry.core.files import read_tensors, write_tensors

KIND = "patch codec"
EDGE = 1 - 1e-6  # atanh is finite inside of (-1, 1)


@codec("patches")
@dataclass(frozen=True)
class PatchCodec:
    """Images [B, side, side] with pixels in [0, 1], in (side / patch)² tokens.

    Args:
        side: of the images, in pixels; default 8, the digits'.
        patch: side of the smallest patches, a divisor of `side`; default 2.
        levels: of each wave, odd numbers keep 0 in the middle; default (9, 7, 7): 441 tokens.
    """

    side: int = 8
    patch: int = 2
    levels: tuple[int, ...] = (9, 7, 7)

    def __post_init__(self) -> None:
        within(self, "[1, inf)", "side", "patch", integer=True)
        if self.side % self.patch:
            raise InputError(f"patches of {self.patch} pixels do not fill a side of {self.side}")
        if len(self.levels) > self.patch**2:
            raise InputError(f"a patch of {self.patch}² pixels has no {len(self.levels)} waves")

    @property
    def quantizer(self) -> FSQ:
        return FSQ(self.levels)

    @property
    def size(self) -> int:
        return self.quantizer.size

    def encode(self, x: Tensor, budget: int | None = None) -> CodecTokens:
        """One token a patch, row by row; the smallest patches that the budget allows."""
        if x.ndim != 3 or x.shape[1:] != (self.side, self.side):
            raise ShapeError(f"images must be [B, {self.side}, {self.side}], got {list(x.shape)}")
        in_range("budget", budget, "[1, inf)", integer=True, optional=True)
        most = math.inf if budget is None else budget
        patch = next(p for p in self._patches() if (self.side // p) ** 2 <= most)
        count = self.side // patch
        squares = x.float().reshape(len(x), count, patch, count, patch).transpose(2, 3)
        waves, largest = self._waves(patch)
        coefficients = torch.einsum("brcmn,imn->brci", squares, waves) / largest
        coefficients[..., 0] = 2 * coefficients[..., 0] - 1
        z = torch.atanh(coefficients.clamp(-EDGE, EDGE)).flatten(1, 2)
        ids = self.quantizer(z).ids
        return CodecTokens(ids, torch.ones_like(ids, dtype=torch.bool))

    def decode(self, tokens: CodecTokens) -> Tensor:
        """[B, side, side] in [0, 1]."""
        count = math.isqrt(tokens.ids.shape[1])
        if count**2 != tokens.ids.shape[1] or self.side % max(count, 1):
            raise ShapeError(f"{tokens.ids.shape[1]} tokens are no square grid of patches")
        patch = self.side // count
        coefficients = self.quantizer.decode(tokens.ids).unflatten(1, (count, count))
        coefficients[..., 0] = (coefficients[..., 0] + 1) / 2
        waves, largest = self._waves(patch)
        squares = torch.einsum("brci,imn->brmcn", coefficients * largest, waves)
        return squares.reshape(-1, self.side, self.side).clamp(0, 1)

    def save(self, path: str | Path) -> None:
        write_tensors(path, {}, {"kind": KIND, "settings": asdict(self)})

    @classmethod
    def load(cls, path: str | Path) -> Self:
        settings = read_tensors(path, KIND)[1]["settings"]
        return cls(**{**settings, "levels": tuple(settings["levels"])})

    def _patches(self) -> list[int]:
        """Sides of patches that fill the image, from the smallest on."""
        return [p for p in range(self.patch, self.side + 1) if not self.side % p]

    def _waves(self, patch: int) -> tuple[Tensor, Tensor]:
        """The d slowest waves [d, p, p], by the sum of their frequencies, and the largest
        coefficient [d] that pixels in [0, 1] can have."""
        k, n = torch.arange(patch)[:, None], torch.arange(patch)
        cosine = (2 / patch) ** 0.5 * torch.cos(torch.pi * (n + 0.5) * k / patch)
        cosine[0] = patch**-0.5
        order = sorted(
            ((i, j) for i in range(patch) for j in range(patch)), key=lambda ij: (sum(ij), ij)
        )
        waves = torch.stack(
            [torch.outer(cosine[i], cosine[j]) for i, j in order[: len(self.levels)]]
        )
        return waves, waves.clamp_min(0).sum((1, 2))  # a wave's halves are as large as each other
