"""Streams of candidates: read once, pulled within a budget, the better ones kept, one chosen.

Candidates (arms) i = 1..K come once, in order. A pull of an arm gives a reward in [0, 1] with mean
p_i: an item answered with a prompt, a draft judged, a game of a checkpoint. Only arms in hand can
be pulled, and T pulls are all there are; those that are left go to the chosen arm. With p* the
largest mean and n_i the pulls of arm i,

    regret = sum_i n_i (p* - p_i)

With o(K) arms in memory no method does better than of order K^(1/3) T^(2/3), which an arm within

    epsilon = (K / T)^(1/3)

of the best, found in O(K / epsilon^2) pulls, reaches.

Source: Tight Regret Bounds for Single-pass Streaming Multi-armed Bandits (arXiv 2306.02208).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch

from tokenry.core.checks import in_range
from tokenry.core.errors import InputError
from tokenry.core.registry import Role

C = TypeVar("C")

Pull = Callable[[int, torch.Generator], float]
"""(n >= 1, generator) -> the sum of n rewards of one arm, each in [0, 1]."""


@dataclass
class Arm:
    """An arm in hand. number: its place in the stream, from 0. pulls: so far. estimate: the mean of
    what a selector counts as its estimate; -inf before the first."""

    number: int
    pulls: int = 0
    estimate: float = -math.inf


class ArmStream:
    """K arms that come once, and T pulls; every pull is charged to the arm that was pulled.

    Args:
        arms: a `Pull` for each arm, at least one.
        budget: T, in [0, inf).
        seed: of the rewards, or their generator.
    """

    def __init__(self, arms: Sequence[Pull], budget: int, seed: int | torch.Generator = 0):
        if not arms:
            raise InputError("a stream without arms has none to choose")
        in_range("budget", budget, "[0, inf)", integer=True)
        self.arms, self.budget = arms, budget
        self.pulls = [0] * len(arms)
        self.in_hand: dict[int, Arm] = {}
        self.most_stored = 0
        self._next = 0
        seeded = isinstance(seed, torch.Generator)
        self.generator = seed if seeded else torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        """K."""
        return len(self.arms)

    @property
    def left(self) -> int:
        """Pulls that are left."""
        return self.budget - sum(self.pulls)

    @property
    def epsilon(self) -> float:
        """(K / T)^(1/3), at most 1."""
        return min(1.0, (len(self) / self.budget) ** (1 / 3)) if self.budget else 1.0

    def next(self) -> Arm | None:
        """The next arm; what is in hand before it is read is what is stored."""
        self.most_stored = max(self.most_stored, len(self.in_hand))
        if self._next == len(self.arms):
            return None
        arm = self.in_hand[self._next] = Arm(self._next)
        self._next += 1
        return arm

    def drop(self, arm: Arm) -> None:
        """Let an arm go; it does not come back."""
        self._held(arm)
        del self.in_hand[arm.number]

    def pull(self, arm: Arm, count: float) -> float:
        """The mean reward of ceil(count) pulls, or of those that are left; -inf where none is."""
        self._held(arm)
        taken = min(math.ceil(count), self.left)
        if taken <= 0:
            return -math.inf
        self.pulls[arm.number] += taken
        arm.pulls += taken
        return self.arms[arm.number](taken, self.generator) / taken

    def _held(self, arm: Arm) -> None:
        if self.in_hand.get(arm.number) is not arm:
            raise InputError(f"arm {arm.number} is not in hand: it was dropped, and comes once")


class StreamSelector(Protocol):
    """The role: one arm i of a stream of K, within an expected epsilon = (K / T)^(1/3) of the best,
    from at most T pulls and with at most `memory(K)` arms stored while the next one is read."""

    def memory(self, arms: int) -> int:
        """How many arms are stored at most."""
        ...

    def __call__(self, stream: ArmStream) -> Arm:
        """The chosen arm, in hand; some of the budget may be left."""
        ...


stream_selector = Role("stream selector", StreamSelector, ("tokenry.measure.streams",))


@dataclass(frozen=True)
class BanditResult:
    """arm: the number of the chosen one. pulls: of each arm, all T. stored: arms at most."""

    arm: int
    pulls: tuple[int, ...]
    stored: int

    def regret(self, means: Sequence[float]) -> float:
        """sum_i n_i (p* - p_i), for arms whose means are known."""
        best = max(means)
        return math.fsum(n * (best - p) for n, p in zip(self.pulls, means, strict=True))


def play(selector: StreamSelector, stream: ArmStream) -> BanditResult:
    """Choose an arm and spend the rest of the budget on it."""
    arm = selector(stream)
    stream.pull(arm, stream.left)
    return BanditResult(arm.number, tuple(stream.pulls), stream.most_stored)


def select_from_stream(
    candidates: Sequence[C],
    score: Callable[[C, int, torch.Generator], float],
    budget: int,
    selector: StreamSelector,
    seed: int = 0,
) -> C:
    """The candidate (prompt, draft, checkpoint) that a selector chooses; the rest is not spent.

    Args:
        candidates: at least one.
        score: (candidate, n, generator) -> the sum of n rewards in [0, 1], drawn anew.
        budget: T, the most rewards that are drawn; epsilon is of it.
    """
    arms = [lambda n, g, candidate=candidate: score(candidate, n, g) for candidate in candidates]
    return candidates[selector(ArmStream(arms, budget, seed)).number]


def bernoulli(mean: float) -> Pull:
    """Rewards of 0 and 1 with this mean, in [0, 1]."""
    in_range("mean", mean, "[0, 1]")

    def pull(count: int, generator: torch.Generator) -> float:
        size = torch.tensor([float(count), mean], dtype=torch.float64)
        return float(torch.binomial(size[:1], size[1:], generator=generator))

    return pull
