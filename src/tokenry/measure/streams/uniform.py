"""Uniform exploration: every arm is pulled as often, and the best mean so far is kept.

    b = (T / K)^(2/3) (ln T)^(1/3)     pulls of each arm
    b = ln K / epsilon^2               of the naive search for an arm within epsilon of the best

The regret is of order K^(1/3) T^(2/3), times (ln T)^(1/3) or ln K. One arm is stored.

Source: Tight Regret Bounds for Single-pass Streaming Multi-armed Bandits (arXiv 2306.02208), its
baselines. Reconstructed: b is rounded up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tokenry.measure.streams.base import Arm, ArmStream, stream_selector


@stream_selector("uniform", paper=65)
@dataclass(frozen=True)
class UniformExploration:
    """(T / K)^(2/3) (ln T)^(1/3) pulls of each arm."""

    def pulls(self, arms: int, budget: int) -> float:
        """b, before it is rounded up."""
        return (budget / arms) ** (2 / 3) * math.log(max(budget, 1)) ** (1 / 3)

    def memory(self, arms: int) -> int:
        return 1

    def __call__(self, stream: ArmStream) -> Arm:
        return best_after(stream, self.pulls(len(stream), stream.budget))


@stream_selector("naive", paper=65)
@dataclass(frozen=True)
class NaiveSearch:
    """ln K / epsilon^2 pulls of each arm: enough that all means are within epsilon / 2 or so."""

    def pulls(self, arms: int, budget: int) -> float:
        """b, before it is rounded up."""
        return math.log(arms) * (budget / arms) ** (2 / 3)

    def memory(self, arms: int) -> int:
        return 1

    def __call__(self, stream: ArmStream) -> Arm:
        return best_after(stream, self.pulls(len(stream), stream.budget))


def best_after(stream: ArmStream, pulls: float) -> Arm:
    """The arm with the largest mean of so many pulls, the first of equals."""
    best = stream.next()
    assert best is not None
    if len(stream) > 1:  # a single arm is chosen as it is
        best.estimate = stream.pull(best, max(1.0, pulls))
    while (challenger := stream.next()) is not None:
        challenger.estimate = stream.pull(challenger, max(1.0, pulls))
        if challenger.estimate > best.estimate:
            best, challenger = challenger, best
        stream.drop(challenger)
    return best
