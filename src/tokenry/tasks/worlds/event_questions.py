"""Event questions: passages of events, and the question which of them go together with one.

Every trigger word is of a colour, and a part of them of either of two: which one, the passage does
not show. The question is a trigger of one colour; the answer are the events of its colour, in the
order of the passage, and the others distract. The colours are to be learnt from examples;
no one can be sure of the ambiguous ones.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenry.core.errors import InputError

PAD, EOS, START = range(3)
FIRST = 3  # the first trigger


@dataclass(frozen=True)
class EventQuestion:
    """source: the question's trigger, then those of the passage. answers, others: those of the
    passage that are of the question's colour and those that are not, in order."""

    source: tuple[int, ...]
    answers: tuple[int, ...]
    others: tuple[int, ...]


@dataclass(frozen=True)
class EventQuestions:
    """triggers: how many words. colours: of which they are. events: in a passage. ambiguous: share
    of the triggers that are of two colours. seed: of the colours."""

    triggers: int = 40
    colours: int = 4
    events: int = 6
    ambiguous: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        if self.triggers < 4 * self.events or self.colours < 2 or self.events < 2:
            raise InputError(
                f"{self.events} events of {self.colours} colours need at least 2 of either, and "
                f"four times as many triggers as events (not {self.triggers})"
            )

    @property
    def vocabulary(self) -> int:
        return FIRST + self.triggers

    def colours_of(self, trigger: int) -> tuple[int, ...]:
        """The colour of a trigger, or the two that it may have."""
        chance = random.Random(self.seed * 100_003 + trigger)
        count = 1 + (trigger - FIRST < self.ambiguous * self.triggers)
        return tuple(chance.sample(range(self.colours), count))

    def draw(self, chance: random.Random) -> EventQuestion:
        """A passage with one to three answers."""
        while True:
            asked, *events = chance.sample(range(FIRST, self.vocabulary), self.events + 1)
            colours = {trigger: chance.choice(self.colours_of(trigger)) for trigger in events}
            wanted = self.colours_of(asked)
            answers = tuple(trigger for trigger in events if (colours[trigger],) == wanted)
            if 1 <= len(answers) <= min(3, self.events - 1):
                others = tuple(trigger for trigger in events if trigger not in answers)
                return EventQuestion((asked, *events), answers, others)


def batch(questions: Sequence[EventQuestion]) -> tuple[Tensor, Tensor, Tensor]:
    """Sources [B, S], targets [B, T] that end with EOS, and their mask, bool [B, T]."""
    longest = 1 + max(len(question.answers) for question in questions)
    rows = [[*q.answers, EOS] + [PAD] * (longest - 1 - len(q.answers)) for q in questions]
    target = torch.tensor(rows)
    return torch.tensor([question.source for question in questions]), target, target != PAD
