"""What a codec is: anything that is no text, as tokens, and back.

ids = encode(x),      x' = decode(ids) ~ x
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from torch import Tensor

from tokenry.core.errors import ShapeError
from tokenry.core.registry import Role


@dataclass(frozen=True)
class CodecTokens:
    """Tokens of B things. ids: [B, n] long. mask: [B, n] bool, False behind the end of one that has
    fewer."""

    ids: Tensor
    mask: Tensor

    def __post_init__(self) -> None:
        if self.ids.ndim != 2 or self.ids.shape != self.mask.shape:
            raise ShapeError(
                f"ids and mask must be [B, n], got {list(self.ids.shape)}, {list(self.mask.shape)}"
            )


class Codec(Protocol):
    """The role: x -> ids of a vocabulary of `size` -> x', in at most `budget` tokens each.

    The more tokens, the nearer x' is to x.
    """

    @property
    def size(self) -> int: ...

    def encode(self, x: Tensor, budget: int | None = None) -> CodecTokens:
        """Tokens of x [B, ...]; None: as many as the codec has. InputError for a budget that is too
        small for anything."""
        ...

    def decode(self, tokens: CodecTokens) -> Tensor:
        """x' [B, ...]"""
        ...

    def save(self, path: str | Path) -> None:
        """Everything that `load` needs, in one file."""
        ...

    @classmethod
    def load(cls, path: str | Path) -> Self: ...


codec = Role("codec", Codec, ("tokenry.codecs",))
