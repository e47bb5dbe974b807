"""A toy language model that can be enumerated: the truth that samplers are measured against.

Its next-token logits depend on the last `order` tokens and come from a table drawn once from a
normal distribution. Small enough to list every text, its constrained distribution is known exactly.
It is read through `ToyState`, which has the verbs of the decoding state of a real model.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor


class NextToken(Protocol):
    """What gives next-token logits [V] after any text, a sequence of ids."""

    def logits(self, text: Any) -> Tensor: ...


@dataclass(frozen=True)
class ToyLM:
    """A table of logits over `vocab_size` tokens for each context of at most `order` tokens.

    eos: the token that ends a text. scale: standard deviation of the logits (larger: more peaked).
    """

    vocab_size: int = 4
    order: int = 2
    eos: int = 0
    scale: float = 1.5
    seed: int = 0
    table: dict[tuple[int, ...], Tensor] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        table = {
            context: self.scale * torch.randn(self.vocab_size, generator=generator)
            for length in range(self.order + 1)
            for context in itertools.product(range(self.vocab_size), repeat=length)
        }
        object.__setattr__(self, "table", table)

    def logits(self, text: Sequence[int]) -> Tensor:
        """float32 `[V]`: next-token logits after `text`."""
        return self.table[tuple(text[max(len(text) - self.order, 0) :])]

    def texts(
        self, max_new_tokens: int, prompt: Sequence[int] = ()
    ) -> dict[tuple[int, ...], float]:
        """log p of every text that ends within the limit, its end counted and not listed."""
        found: dict[tuple[int, ...], float] = {}

        def walk(text: tuple[int, ...], logprob: float) -> None:
            if len(text) == max_new_tokens:
                return
            logprobs = self.logits([*prompt, *text]).double().log_softmax(-1).tolist()
            for token, value in enumerate(logprobs):
                if token == self.eos:
                    found[text] = logprob + value
                else:
                    walk((*text, token), logprob + value)

        walk((), 0.0)
        return found

    def conditional(
        self,
        accept: Callable[[tuple[int, ...]], bool],
        max_new_tokens: int,
        prompt: Sequence[int] = (),
    ) -> tuple[dict[tuple[int, ...], float], float]:
        """Probabilities of the accepted texts given acceptance, and the log of their total."""
        texts = self.texts(max_new_tokens, prompt)
        accepted = {text: math.exp(value) for text, value in texts.items() if accept(text)}
        evidence = math.fsum(accepted.values())
        if not accepted:
            return {}, float("-inf")
        return {text: p / evidence for text, p in accepted.items()}, math.log(evidence)


class ToyState:
    """Reads a `ToyLM` with the verbs of a decoding state: start, logits, append, select, fork."""

    def __init__(self, model: NextToken, rows: list[list[int]]):
        self.model, self.rows = model, rows

    @classmethod
    def start(cls, model: NextToken, ids: Tensor) -> ToyState:
        """ids: `[B, T]` prompts; T may be 0."""
        return cls(model, [list(map(int, row)) for row in ids])

    @property
    def length(self) -> int:
        return len(self.rows[0])

    @property
    def logits(self) -> Tensor:
        return torch.stack([self.model.logits(row) for row in self.rows])  # [B, V]

    def append(self, tokens: Tensor) -> None:
        for row, more in zip(self.rows, tokens.view(len(self.rows), -1).tolist(), strict=True):
            row.extend(more)

    def select(self, index: Tensor) -> None:
        self.rows = [list(self.rows[row]) for row in index.tolist()]

    def copy(self) -> ToyState:
        return ToyState(self.model, [list(row) for row in self.rows])

    def fork(self, n: int) -> ToyState:
        self.rows = [list(row) for row in self.rows for _ in range(n)]
        return self


def total_variation(p: dict[tuple[int, ...], float], q: dict[tuple[int, ...], float]) -> float:
    """½ Σ |p - q| over all texts of either distribution."""
    return 0.5 * math.fsum(abs(p.get(text, 0.0) - q.get(text, 0.0)) for text in {*p, *q})


def odd_sum(text: tuple[int, ...]) -> bool:
    """A constraint on toy texts: `may_get_odd`, and an odd sum."""
    return may_get_odd(text) and sum(text) % 2 == 1


def may_get_odd(text: tuple[int, ...]) -> bool:
    """Token 3 at most once, and not right behind a leading 1."""
    return text.count(3) <= 1 and text[:2] != (1, 3)
