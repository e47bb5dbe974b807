"""Tournament: arms play at the first of a few levels, and their champions at the next.

Level l pulls each arm that plays at it b_l times. Its champion is the arm with the largest mean of
them. When the level has spent more than c_l pulls, its champion goes up to the next level, whose
champion it plays, and the level starts anew. With epsilon = (K / T)^(1/3):

    form      levels l                    b_l                          c_l
    log       0 .. floor(ln K) - 1        1.2^l / epsilon^2            6 b_l
    log log   0 .. floor(ln ln K)         1.2^l / epsilon^2            10 b_l
    log*      r_1 = 2, r_(l+1) = 2^r_l    min(r_l, ln K) / epsilon^2   2^r_l / (2^(l-1) epsilon^2)
              up to the first r_l >= ln K

The last level of log log pulls ln K / epsilon^2 times. The last level of each form has no end. When
the stream is over, the champions of all levels are pulled b_0 times each, and the largest of these
means is chosen.

Source: Tight Regret Bounds for Single-pass Streaming Multi-armed Bandits (arXiv 2306.02208) and its
code's constants. Reconstructed: one level at least; that the last level of log has no end; c_l of
log* above the first level (4 / epsilon^2), after the algorithm that it comes from (Exploration with
Limited Memory, arXiv 2004.04666). Every pull is charged to the arm that was pulled, and the first
arm's mean counts, which the code leaves out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from tokenry.core.checks import one_of, within
from tokenry.measure.streams.base import Arm, ArmStream, stream_selector

Form = Literal["log", "log log", "log*"]
MEAN_CAPACITY = {"log": 6.0, "log log": 10.0}


class Level(NamedTuple):
    """pulls: of each arm that plays at it. capacity: pulls after which its champion goes up."""

    pulls: int
    capacity: float


@stream_selector("tournament", paper=65, examples=lambda: _examples())
@dataclass(frozen=True)
class Tournament:
    """A champion for each level.

    Args:
        form: how many levels, and how many pulls at each; default "log".
        base: by which b_l grows in the first two forms, in [1, inf); default 1.2.
        capacity: c_l / b_l in the first two forms, in (0, inf); None, the default, is 6 and 10.
    """

    form: Form = "log"
    base: float = 1.2
    capacity: float | None = None

    def __post_init__(self) -> None:
        one_of("Tournament.form", self.form, get_args(Form))
        within(self, "[1, inf)", "base")
        within(self, "(0, inf)", "capacity", optional=True)

    def levels(self, arms: int, epsilon: float) -> list[Level]:
        """From the first to the last, for K arms and an epsilon in (0, 1]."""
        unit, most = epsilon**-2, math.log(max(arms, 2))
        if self.form == "log*":
            ranks = [2]
            while ranks[-1] < most:
                ranks.append(2 ** ranks[-1])
            made = [
                Level(math.ceil(min(rank, most) * unit), 2.0 ** (min(rank, most) - number) * unit)
                for number, rank in enumerate(ranks)
            ]
        else:
            deep = math.floor(most) if self.form == "log" else math.floor(math.log(most)) + 1
            share = MEAN_CAPACITY[self.form] if self.capacity is None else self.capacity
            pulls = [math.ceil(self.base**level * unit) for level in range(max(1, deep))]
            if self.form == "log log":
                pulls[-1] = math.ceil(most * unit)
            made = [Level(count, share * count) for count in pulls]
        return [*made[:-1], made[-1]._replace(capacity=math.inf)]

    def memory(self, arms: int) -> int:
        return len(self.levels(arms, 1.0))

    def __call__(self, stream: ArmStream) -> Arm:
        levels = self.levels(len(stream), stream.epsilon)
        champions: list[Arm | None] = [None] * len(levels)
        spent = [0] * len(levels)
        if len(stream) == 1:
            champions[0] = stream.next()
        while (climbing := stream.next()) is not None:
            for number, level in enumerate(levels):
                before = stream.left
                climbing.estimate = stream.pull(climbing, level.pulls)
                spent[number] += before - stream.left
                champion = champions[number]
                if champion is not None and climbing.estimate <= champion.estimate:
                    climbing, champion = champion, climbing
                if champion is not None:
                    stream.drop(champion)
                champions[number] = climbing
                if spent[number] <= level.capacity:
                    break
                champions[number], spent[number] = None, 0  # the champion goes up
        finalists = [arm for arm in champions if arm is not None]
        if stream.left < len(finalists) * levels[0].pulls or len(finalists) == 1:
            return finalists[-1]  # too few pulls to compare them: the highest level's
        means = [stream.pull(arm, levels[0].pulls) for arm in finalists]
        return finalists[means.index(max(means))]


def _examples() -> list[Tournament]:
    return [Tournament("log"), Tournament("log log"), Tournament("log*")]
