"""Facts and questions: a text states the value of every key, twice, and then asks for some of them.

statement   one token for a key and its value
question    two tokens: the key, then its value
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenry.core.checks import within


@dataclass(frozen=True)
class Facts:
    """Texts about `keys` keys with `values` possible values.

    Args:
        keys: an even number. values: how many.
        window: tokens of a short text; facts and questions fill it.
        chunk: tokens of a long text's chunk. chunks: of a long text, whose last one asks for other
            keys than those between the facts and it.
    """

    keys: int = 16
    values: int = 8
    window: int = 64
    chunk: int = 16
    chunks: int = 6

    def __post_init__(self) -> None:
        within(self, "[2, inf)", "keys", "values", "chunk", "chunks", integer=True)

    @property
    def vocabulary(self) -> int:
        return self.keys * self.values + self.keys + self.values

    @property
    def stated(self) -> int:
        """Tokens before the first question."""
        return 2 * self.keys

    def short_texts(self, count: int, generator: torch.Generator) -> Tensor:
        """All facts, and as many questions as fill the window: [count, window]."""
        facts = torch.randint(self.values, (count, self.keys), generator=generator)
        asked = (self.window - self.stated) // 2
        keys = torch.randint(self.keys, (count, asked), generator=generator)
        return torch.cat([self._statements(facts, generator), self._questions(keys, facts)], 1)

    def long_texts(self, count: int, generator: torch.Generator) -> Tensor:
        """All facts, questions about one half of the keys, and a last chunk that asks for the other
        half: [count, chunk * chunks]."""
        facts = torch.randint(self.values, (count, self.keys), generator=generator)
        keys = torch.rand(count, self.keys, generator=generator).argsort(1)
        half = self.keys // 2
        between = (self.chunk * (self.chunks - 1) - self.stated) // 2
        near = torch.randint(half, (count, between), generator=generator)
        asked = torch.cat([keys.gather(1, near), keys[:, half:]], dim=1)
        return torch.cat([self._statements(facts, generator), self._questions(asked, facts)], 1)

    def _statements(self, facts: Tensor, generator: torch.Generator) -> Tensor:
        """Facts [B, keys] in some order, and again in another: [B, 2 keys]."""
        tokens = torch.arange(self.keys) * self.values + facts
        orders = [torch.rand(facts.shape, generator=generator).argsort(1) for _ in range(2)]
        return torch.cat([tokens.gather(1, order) for order in orders], dim=1)

    def _questions(self, keys: Tensor, facts: Tensor) -> Tensor:
        """Key, value, key, value, ... for keys [B, n]: [B, 2 n]."""
        asked = self.keys * self.values + keys
        answers = self.keys * self.values + self.keys + facts.gather(1, keys)
        return torch.stack([asked, answers], dim=-1).flatten(1)
