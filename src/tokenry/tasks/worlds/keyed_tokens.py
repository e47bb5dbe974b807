"""Tokens of a key and a value: the sum of their embeddings, and noise; questions ask by key."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class KeyedTokens:
    """Embeddings of keys and values, drawn with `seed`.

    Args:
        seed: of the embeddings.
        keys: how many there are.
        values: how many there are.
        width: of an embedding, whose length is about 1.
        noise: length of what is added to a token, in units of an embedding's.
    """

    seed: int = 0
    keys: int = 256
    values: int = 16
    width: int = 64
    noise: float = 0.6

    generator: torch.Generator = field(init=False, repr=False, compare=False)
    """Goes on behind the draws of the embeddings."""
    embeddings: tuple[Tensor, Tensor] = field(init=False, repr=False, compare=False)
    """Of keys and values, [keys, width] and [values, width]."""

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        embeddings = tuple(
            torch.randn(count, self.width, generator=generator) / self.width**0.5
            for count in (self.keys, self.values)
        )
        object.__setattr__(self, "generator", generator)
        object.__setattr__(self, "embeddings", embeddings)

    def questions(
        self, count: int, length: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens [count, length, width] with different keys, the embedding of one of their keys
        [count, width], and the number of its value [count]."""
        keys = torch.rand(count, self.keys, generator=generator).argsort(-1)[:, :length]
        values = torch.randint(self.values, (count, length), generator=generator)
        noise = torch.randn(count, length, self.width, generator=generator)
        noise = noise * self.noise / self.width**0.5
        asked = torch.randint(length, (count,), generator=generator)
        rows = torch.arange(count)
        of_key, of_value = self.embeddings
        tokens = of_key[keys] + of_value[values] + noise
        return tokens, of_key[keys[rows, asked]], values[rows, asked]
