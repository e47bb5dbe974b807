"""Import lines: a topic of five letters and the module that it imports, some of which do not exist.

    qotra
    import textwrap

The topic's first letter leaves a tenth of the modules to choose from. Invented modules are made of
halves of Python's own, as an outdated corpus or a model would have them.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from tokenry.text.names import NameRegistry

LETTERS = "abcdefghijklmnopqrstuvwxyz"
CHARACTERS = LETTERS + " \n"
END = CHARACTERS.index("\n")
TOPIC, LONGEST = 5, 9  # letters of a topic, and of a name at most


@dataclass(frozen=True)
class ImportLines:
    """The seeded corpus. names: that it imports; invented: those that do not exist."""

    seed: int
    count: int = 100
    invented: int = 20

    @cached_property
    def existing(self) -> list[str]:
        known = [
            name
            for name in sorted(sys.stdlib_module_names)
            if 3 <= len(name) < LONGEST and set(name) <= set(LETTERS)
        ]
        return random.Random(self.seed).sample(known, self.count - self.invented)

    @cached_property
    def names(self) -> list[str]:
        """What the corpus imports: modules that exist, and plausible ones that do not."""
        draw, invented = random.Random(self.seed), set()
        while len(invented) < self.invented:
            first, second = draw.sample(self.existing, 2)
            invented |= {first[:3] + second[-3:]} - sys.stdlib_module_names
        names = [*self.existing, *sorted(invented)]
        draw.shuffle(names)
        return names

    @cached_property
    def registry(self) -> NameRegistry:
        return NameRegistry.of(self.existing)

    def topics(self, count: int, seed: int) -> list[str]:
        draw = random.Random(f"{self.seed}:{seed}")
        return ["".join(draw.choices(LETTERS, k=TOPIC)) for _ in range(count)]

    def lines(self, topics: Sequence[str]) -> list[str]:
        """Each topic with an import: one of the modules that its first letter may mean."""
        draw = random.Random(f"{self.seed}:0:lines")
        return [
            prompt(topic) + draw.choice(self.names[LETTERS.index(topic[0]) % 10 :: 10]) + "\n"
            for topic in topics
        ]

    def fails(self, text: str) -> bool:
        """Whether a text names a module that does not exist."""
        return any(not span.valid for span in self.registry.classify(text))


def prompt(topic: str) -> str:
    """A topic up to where the module's name begins."""
    return f"{topic}\nimport "


def mutate(topics: Sequence[str], seed: int) -> list[str]:
    """Each topic with one letter changed."""
    draw = random.Random(seed)
    places = [draw.randrange(TOPIC) for _ in topics]
    return [t[:n] + draw.choice(LETTERS) + t[n + 1 :] for t, n in zip(topics, places, strict=True)]


def encode(text: str) -> list[int]:
    """The ids of a text's characters."""
    return [CHARACTERS.index(character) for character in text]
