"""Addition with or without working: answers that may think first, and that a program judges.

    prompt      4 7 + 3 8 =
    at once     0 8 5 .                    the sum, its digits from the left, and the end
    worked      1 5 , 0 8 ; 0 8 5 .        first the sums of the columns, from the right, with carry

    hinted      4 7 + 3 8 = 0 8 5 =        the prompt with the sum behind it, which may be known

Only the digits between the working and the end are judged, all or nothing. A working makes the
answer a copy of what was just written, so that it is longer and right more often: a policy that is
rewarded for right answers has a way of writing to find, not only digits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokenry.core.batch import TokenBatch
from tokenry.core.checks import within

SYMBOLS = "0123456789+=,;."
PLUS, EQUALS, COMMA, SEMICOLON, END = range(10, 15)
VOCABULARY = len(SYMBOLS)


@dataclass(frozen=True)
class WrittenAddition:
    """Sums of two numbers of `digits` digits, in [1, inf). Token ids: those of `SYMBOLS`.

    worked: the share of the given answers that show their working, in [0, 1]. hinted: the share of
    given prompts that say the sum, in [0, 1].
    """

    digits: int = 2
    worked: float = 0.5
    hinted: float = 0.0

    vocabulary: ClassVar[int] = VOCABULARY
    end: ClassVar[int] = END

    def __post_init__(self) -> None:
        within(self, "[1, inf)", "digits", integer=True)
        within(self, "[0, 1]", "worked", "hinted")

    @property
    def asked(self) -> int:
        """Tokens of a prompt."""
        return 2 * self.digits + 2

    @property
    def longest(self) -> int:
        """Tokens of a worked answer, its end included."""
        return 4 * self.digits + 2

    @property
    def context(self) -> int:
        """Tokens that a model has to read at most."""
        return self.asked + self.longest + 1 + (self.digits + 2) * (self.hinted > 0)

    def prompts(self, count: int, generator: torch.Generator) -> Tensor:
        """[count, asked]."""
        numbers = torch.randint(10, (2, count, self.digits), generator=generator)
        plus, equals = (torch.full((count, 1), symbol) for symbol in (PLUS, EQUALS))
        return torch.cat([numbers[0], plus, numbers[1], equals], 1)

    def sums(self, prompts: Tensor) -> Tensor:
        """The digits of the sums from the left, [count, digits + 1]."""
        return torch.stack([self._columns(prompts)[-1] // 10, *self._written(prompts)], 1)

    def hints(self, prompts: Tensor) -> Tensor:
        """What stands behind prompts that say the sum, [count, digits + 2]."""
        return torch.cat([self.sums(prompts), torch.full_like(prompts[:, :1], EQUALS)], 1)

    def answers(self, prompts: Tensor, worked: Tensor) -> tuple[Tensor, Tensor]:
        """Right answers, worked where `worked` [count] says so, and their lengths: [count, longest]
        with the end repeated behind it, and [count]."""
        ends = torch.full((len(prompts), self.longest), END)
        at_once = torch.cat([self.sums(prompts), ends], 1)[:, : self.longest]
        steps = []
        for column in self._columns(prompts):
            steps += [column // 10, column % 10, torch.full_like(column, COMMA)]
        steps[-1] = torch.full_like(steps[-1], SEMICOLON)
        written = torch.cat([torch.stack(steps, 1), self.sums(prompts), ends[:, :1]], 1)
        lengths = torch.where(worked, self.longest, self.digits + 2)
        return torch.where(worked[:, None], written, at_once), lengths

    def given(self, generator: torch.Generator, count: int = 64) -> TokenBatch:
        """Prompts with right answers, as a base policy learns them."""
        prompts = self.prompts(count, generator)
        answers, lengths = self.answers(
            prompts, torch.rand(count, generator=generator) < self.worked
        )
        there = torch.arange(self.longest) < lengths[:, None]
        if not self.hinted:
            return self._behind(prompts, answers, there)
        told = torch.rand(count, generator=generator) < self.hinted
        hinted = torch.cat([prompts, self.hints(prompts)], 1)
        parts = [
            self._behind(asked[rows], answers[rows], there[rows])
            for asked, rows in ((prompts, ~told), (hinted, told))
            if bool(rows.any())
        ]
        return parts[0] if len(parts) == 1 else parts[0].concat(parts[1], END)

    def _behind(self, prompts: Tensor, answers: Tensor, there: Tensor) -> TokenBatch:
        """Answers, as far as they are there, behind prompts of one length."""
        old = torch.ones_like(prompts, dtype=torch.bool)
        ids = torch.cat([prompts, answers], 1)
        return TokenBatch(ids, torch.cat([old, there], 1), torch.cat([~old, there], 1))

    def correct(self, batch: TokenBatch) -> Tensor:
        """Whether each completion's answer is the sum and ended, [B] bool."""
        sums = self.sums(batch.ids[:, : self.asked])
        written = batch.ids.masked_fill(~batch.target, -1)[:, self.asked :]
        last = batch.target.sum(-1, keepdim=True) - 1  # where the end must be
        first = last - self.digits - 1
        places = first + torch.arange(self.digits + 2)
        tail = written.gather(1, places.clamp(0, written.shape[1] - 1))
        right = (tail[:, :-1] == sums).all(-1) & (tail[:, -1] == END) & (first[:, 0] >= 0)
        before = written.gather(1, (first - 1).clamp_min(0))[:, 0]
        return right & ((first[:, 0] == 0) | (before == SEMICOLON))

    def text(self, ids: Tensor) -> str:
        """How ids read."""
        return "".join(SYMBOLS[token] for token in ids.tolist())

    def _columns(self, prompts: Tensor) -> list[Tensor]:
        """The sum of each column with its carry, from the right, [count] each."""
        first, second = prompts[:, : self.digits], prompts[:, self.digits + 1 : -1]
        carry, columns = torch.zeros_like(first[:, 0]), []
        for place in reversed(range(self.digits)):
            columns.append(first[:, place] + second[:, place] + carry)
            carry = columns[-1] // 10
        return columns

    def _written(self, prompts: Tensor) -> list[Tensor]:
        return [column % 10 for column in reversed(self._columns(prompts))]
