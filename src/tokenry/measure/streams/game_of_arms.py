"""Game of arms: a king with a budget meets every arm that comes, until he cannot pay.

With epsilon = (K / T)^(1/3) and u = 1 / epsilon^2 pulls:

    a new king     is pulled ln K u times, his estimate; his budget is 1.2 u
    a challenger   adds u to the budget; in rounds l = 0, 1, ... it is pulled 2^l u times, paid from
                   the budget, until its mean so far is below the king's estimate - epsilon / 5
    no budget      for the next round: the challenger is the new king

Beside it each arm is drawn with probability min(1, 1.5 / ln K), pulled ln K u times, and the best
of these kept. It is chosen if the game needs more than 10 K u pulls, after which the game is over.

Source: Tight Regret Bounds for Single-pass Streaming Multi-armed Bandits (arXiv 2306.02208) and its
code's constants, after Exploration with Limited Memory (arXiv 2004.04666). Reconstructed: how often
a king is pulled, and that an arm's rounds count together in its mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from tokenry.core.checks import within
from tokenry.measure.streams.base import Arm, ArmStream, stream_selector


@stream_selector("game-of-arms", paper=65)
@dataclass(frozen=True)
class GameOfArms:
    """A king, and the best of a random sample of the arms in case the game takes too long.

    Args:
        initial: of the king's budget, in units of 1 / epsilon^2, in [0, inf); default 1.2.
        margin: by which a challenger may lie below the king, times epsilon, in [0, inf); default
            1/5.
        sampled: expected number of sampled arms is this times K / ln K, in [0, inf); default 1.5.
        patience: pulls of the game, times K / epsilon^2, in (0, inf); default 10.
    """

    initial: float = 1.2
    margin: float = 0.2
    sampled: float = 1.5
    patience: float = 10.0

    def __post_init__(self) -> None:
        within(self, "[0, inf)", "initial", "margin", "sampled")
        within(self, "(0, inf)", "patience")

    def memory(self, arms: int) -> int:
        return 2

    def __call__(self, stream: ArmStream) -> Arm:
        unit, most = stream.epsilon**-2, math.log(max(len(stream), 2))
        chance = min(1.0, self.sampled / most)
        king = kept = stream.next()
        assert king is not None
        assert kept is not None
        if len(stream) == 1:
            return king
        king.estimate = kept_mean = stream.pull(king, most * unit)
        purse, played, kings = self.initial * unit, king.pulls, True
        while (arm := stream.next()) is not None:
            if kings:
                purse += unit
                won, paid = self._beats(stream, arm, king.estimate, purse, unit)
                purse, played = purse - paid, played + paid
                if won:
                    old, king = king, arm
                    king.estimate = stream.pull(king, most * unit)
                    purse, played = self.initial * unit, played + math.ceil(most * unit)
                    if old is not kept:
                        stream.drop(old)
                kings = played <= self.patience * len(stream) * unit
            if float(torch.rand((), generator=stream.generator)) < chance:
                mean = stream.pull(arm, most * unit)
                if mean > kept_mean:
                    if kept is not king:
                        stream.drop(kept)
                    kept, kept_mean = arm, mean
            if arm is not king and arm is not kept:
                stream.drop(arm)
        return king if kings else kept

    def _beats(
        self, stream: ArmStream, arm: Arm, king: float, purse: float, unit: float
    ) -> tuple[bool, int]:
        """Whether the king runs out of budget against an arm, and what he paid."""
        paid, total, level = 0, 0.0, 0
        while True:
            count = math.ceil(2**level * unit)
            if paid + count > purse:
                return True, paid
            before = arm.pulls
            mean = stream.pull(arm, count)
            taken = arm.pulls - before
            if not taken:  # nothing is left to find out: the king stays
                return False, paid
            paid, total, level = paid + taken, total + mean * taken, level + 1
            if total / paid < king - self.margin * stream.epsilon:
                return False, paid
