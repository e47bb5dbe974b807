"""Running sums modulo 10, written out step by step: a toy in which one wrong token dooms the rest.

    prompt      3 8 5 7 :
    solution    3 + 8 = 1 + 5 = 6 + 7 = 3 .          each result is the sum so far, modulo 10

Only the number before the end counts as the answer, as with worked arithmetic problems. A digit
copied or added wrongly makes every later step wrong, unless a second error happens to repair it,
so which token of a wrong solution is to blame is known exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PLUS, EQUALS, COLON, END = 10, 11, 12, 13
VOCABULARY = 14
SYMBOLS = "0123456789+=:."


@dataclass(frozen=True)
class RunningSums:
    """Problems of `terms` digits. Token ids: the digits, then + = : and the end."""

    terms: int = 5

    def problems(self, count: int, generator: torch.Generator) -> Tensor:
        """Prompts, [count, terms + 1]."""
        digits = torch.randint(10, (count, self.terms), generator=generator)
        return torch.cat([digits, torch.full((count, 1), COLON)], 1)

    def solutions(self, prompts: Tensor) -> Tensor:
        """The right completions, [count, 4 * terms - 2]."""
        digits = prompts[:, : self.terms]
        totals = digits.cumsum(1) % 10

        def column(symbol: int) -> Tensor:
            return torch.full_like(digits[:, 0], symbol)

        columns = [digits[:, 0]]
        for term in range(1, self.terms):
            columns += [column(PLUS), digits[:, term], column(EQUALS), totals[:, term]]
        return torch.stack([*columns, column(END)], 1)

    def is_correct(self, prompt: Sequence[int], completion: Sequence[int]) -> bool:
        """Whether the completion ends, and the number before its end is the sum."""
        if len(completion) < 2 or completion[-1] != END:
            return False
        return completion[-2] == sum(prompt[: self.terms]) % 10

    def answer(self, completion: Sequence[int]) -> int | None:
        """The number before the end, or None."""
        ended = len(completion) >= 2 and completion[-1] == END
        return completion[-2] if ended and completion[-2] < 10 else None

    @property
    def length(self) -> int:
        """Tokens of a solution, its end included."""
        return 4 * self.terms - 2

    def text(self, ids: Sequence[int]) -> str:
        """How ids read."""
        return "".join(SYMBOLS[token] for token in ids)
