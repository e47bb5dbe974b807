"""Clauses: a made-up language whose most probable text is the empty one.

A text is empty with probability 0.03, else it has three clauses or more: behind each of them, from
the third on, it ends with probability 0.3, and it does when 18 tokens are reached. A clause is an
opener, which says how long it is (2, 3 or 5 tokens), and content symbols, each of four that may
follow the one before it. Which openers are liked and what follows what depends on the dialect, a
token that stands before the text. A text ends only behind a clause, so whoever wants a text of a
given length has to plan.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

END, OPENERS, CONTENT, DIALECTS = 0, {1: 2, 2: 3, 3: 5}, range(4, 12), range(12, 22)
VOCABULARY, LIMIT = 22, 24  # tokens; those of the longest text, with its end
EMPTY, LEAST_CLAUSES, STOP, FULL = 0.03, 3, 0.3, 18


@dataclass(frozen=True)
class ClauseLanguage:
    """Ten dialects, drawn from a seed.

    openers: dialect -> weights of the openers. follows: (dialect, symbol) -> weights of the content
    symbols that may come next.
    """

    seed: int
    openers: dict[int, list[float]] = field(init=False, repr=False, compare=False)
    follows: dict[tuple[int, int], dict[int, float]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        chance = random.Random(self.seed)
        openers, follows = {}, {}
        for dialect in DIALECTS:
            openers[dialect] = [w * math.exp(chance.gauss(0, 0.3)) for w in (6.0, 3.0, 1.5)]
            for symbol in (*OPENERS, *CONTENT):
                after = chance.sample(list(CONTENT), 4)
                follows[dialect, symbol] = {s: math.exp(chance.gauss(0, 0.7)) for s in after}
        object.__setattr__(self, "openers", openers)
        object.__setattr__(self, "follows", follows)

    def text(self, dialect: int, chance: random.Random) -> list[int]:
        """A text without its end."""
        text: list[int] = []
        if chance.random() < EMPTY:
            return text
        clauses = 0
        while len(text) < FULL and (clauses < LEAST_CLAUSES or chance.random() > STOP):
            opener = chance.choices(list(OPENERS), self.openers[dialect])[0]
            clause = [opener]
            while len(clause) < OPENERS[opener]:
                after = self.follows[dialect, clause[-1]]
                clause += chance.choices(list(after), list(after.values()))
            text += clause
            clauses += 1
        return text

    def texts(self, count: int, chance: random.Random) -> list[list[int]]:
        """Texts of any dialects, each with its dialect before it and its end behind it."""
        dialects = [chance.choice(DIALECTS) for _ in range(count)]
        return [[dialect, *self.text(dialect, chance), END] for dialect in dialects]

    def valid(self, dialect: int, text: Sequence[int]) -> bool:
        """Whether a text is made of enough whole clauses of the dialect; the empty one is not."""
        at, clauses = 0, 0
        while at < len(text):
            size = OPENERS.get(text[at], 0)
            clause = text[at : at + size]
            if not size or len(clause) < size:
                return False
            pairs = itertools.pairwise(clause)
            if any(second not in self.follows[dialect, first] for first, second in pairs):
                return False
            at, clauses = at + size, clauses + 1
        return clauses >= LEAST_CLAUSES
