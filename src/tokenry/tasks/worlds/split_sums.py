"""Splits of a sum: prompts with many right answers, so that a policy can be right and narrow.

    prompt      8 5 =
    answer      3 8 + 4 7 .          any two numbers of two digits whose sum it is

A number n has n + 1 right answers. What a policy that is rewarded for right answers keeps of them
is seen in how many different ones it gives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokenry.core.batch import TokenBatch
from tokenry.core.checks import in_range
from tokenry.core.errors import InputError

SYMBOLS = "0123456789+=."
PLUS, EQUALS, END = range(10, 13)


@dataclass(frozen=True)
class SplitSums:
    """Numbers from 0 to `largest`, in [1, 99]. Token ids: those of `SYMBOLS`.

    numbers: the ones that prompts ask for; empty (default): all.
    """

    largest: int = 99
    numbers: tuple[int, ...] = ()

    vocabulary: ClassVar[int] = len(SYMBOLS)
    end: ClassVar[int] = END
    asked: ClassVar[int] = 3
    longest: ClassVar[int] = 6
    context: ClassVar[int] = 10

    def __post_init__(self) -> None:
        in_range("SplitSums.largest", self.largest, "[1, 99]", integer=True)
        if wrong := [n for n in self.numbers if not 0 <= n <= self.largest]:
            raise InputError(f"there is no prompt for {wrong[0]}: numbers go from 0 to the largest")

    def prompts(self, count: int, generator: torch.Generator) -> Tensor:
        """[count, asked]."""
        known = torch.tensor(self.numbers or range(self.largest + 1))
        return self.asking(known[torch.randint(len(known), (count,), generator=generator)])

    def asking(self, numbers: Tensor) -> Tensor:
        """Prompts for numbers [B], [B, asked]."""
        return torch.stack([numbers // 10, numbers % 10, torch.full_like(numbers, EQUALS)], 1)

    def given(self, generator: torch.Generator, count: int = 64) -> TokenBatch:
        """Prompts with right answers, each split as likely as any other."""
        prompts = self.prompts(count, generator)
        total = 10 * prompts[:, 0] + prompts[:, 1]
        first = (torch.rand(count, generator=generator) * (total + 1)).long()
        second = total - first
        columns = [first // 10, first % 10, torch.full_like(first, PLUS)]
        columns += [second // 10, second % 10, torch.full_like(first, END)]
        ids = torch.cat([prompts, torch.stack(columns, 1)], 1)
        there = torch.ones_like(ids, dtype=torch.bool)
        return TokenBatch(ids, there, there & (torch.arange(ids.shape[1]) >= self.asked))

    def correct(self, batch: TokenBatch) -> Tensor:
        """Whether each completion is a split of the number and ended, [B] bool."""
        total = 10 * batch.ids[:, 0] + batch.ids[:, 1]
        answer = batch.ids.masked_fill(~batch.target, -1)[:, self.asked :]
        if answer.shape[1] < self.longest:
            return torch.zeros_like(total, dtype=torch.bool)
        digits = answer[:, [0, 1, 3, 4]]
        form = ((digits >= 0) & (digits <= 9)).all(-1) & (answer[:, 2] == PLUS)
        form &= (answer[:, 5] == END) & (batch.target.sum(-1) == self.longest)
        return form & (digits @ torch.tensor([10, 1, 10, 1]) == total)
