"""Entity typing: noisy symbols of one of 8 fine types -> its coarse and its fine label.

    prompt   six symbols and a separator        answer   place place/b .

Answers are checked by programs that know no type: are all labels known, is the set closed upwards
in the hierarchy, has it at most three labels?
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from tokenry.tasks.verifiers.programs import (
    ConstraintSet,
    hierarchy_closed,
    labels_from,
    length_between,
)

SYMBOLS, READ, ANSWER = 16, 6, 5  # ids below 16 are symbols; tokens of a prompt and of an answer
SEPARATOR, END = 28, 29  # between them 4 coarse and 8 fine labels
VOCABULARY = 30
COARSE = ("person", "place", "work", "event")
LABELS = (*COARSE, *(f"{name}/{part}" for name in COARSE for part in "ab"))


@dataclass(frozen=True)
class EntityTyping:
    """Each type's own distribution of symbols, drawn from the seed."""

    seed: int

    @cached_property
    def table(self) -> Tensor:
        """P(symbol | fine type), [8, 16]."""
        generator = torch.Generator().manual_seed(self.seed)
        return (1.5 * torch.randn(8, SYMBOLS, generator=generator)).softmax(-1)

    @cached_property
    def checks(self) -> ConstraintSet:
        return ConstraintSet.of(labels_from(LABELS), hierarchy_closed(), length_between(1, 3))

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, list[list[int]]]:
        """Prompts [count, 7] and their true answers."""
        fine = torch.randint(8, (count,), generator=generator)
        read = torch.multinomial(self.table[fine], READ, True, generator=generator)
        answers = [[SYMBOLS + kind // 2, SYMBOLS + 4 + kind, END] for kind in fine.tolist()]
        return torch.cat([read, torch.full((count, 1), SEPARATOR)], 1), answers

    def csr(self, answers: Iterable[Sequence[int]]) -> Tensor:
        """The constraint satisfaction rate of each answer."""
        texts = [self.text(answer) for answer in answers]
        return torch.tensor(self.checks.csr([""] * len(texts), texts))

    def text(self, answer: Sequence[int]) -> str:
        """An answer as text; what is no label is written as such."""
        places = [token - SYMBOLS for token in answer if token != END]
        return ", ".join(LABELS[n] if 0 <= n < len(LABELS) else "?" for n in places)


def until_end(answer: Sequence[int]) -> list[int]:
    """The tokens of an answer up to its first end, that included."""
    row = list(answer)
    return row[: row.index(END) + 1] if END in row else row


def micro_f1(answers: Iterable[Sequence[int]], truth: Iterable[Sequence[int]]) -> float:
    """Micro-F1 of the label sets of answers that stop at their end."""
    pairs = [(set(one) - {END}, set(two) - {END}) for one, two in zip(answers, truth, strict=True)]
    right = sum(len(given & wanted) for given, wanted in pairs)
    return 2 * right / max(sum(len(given) + len(wanted) for given, wanted in pairs), 1)
