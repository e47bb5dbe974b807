"""Soft overlong punishment: a penalty that grows as a completion nears the longest allowed.

    r(y) = 0                                  |y| <= L - B
           ((L - B) - |y|) / B                L - B < |y| <= L
           -1                                 |y| > L

|y| in tokens, L the longest length, B the buffer before it.

Source: DAPO: An Open-Source LLM Reinforcement Learning System at Scale (arXiv 2503.14476), eq. 13.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenry.core.checks import in_range, within
from tokenry.learn.rewards.base import Example, Texts, reward


def _examples() -> list[Example]:
    return [
        Example(
            SoftOverlong(4, 2),
            ["a", "b", "c"],
            {"completion_ids": [[1] * 5, [1] * 3, [1] * 2]},
            better=[(0, 1), (1, 2)],
        )
    ]


@reward("soft_overlong", examples=_examples)
@dataclass(frozen=True)
class SoftOverlong:
    """In [-1, 0], to be added to a reward of what a completion says.

    Args:
        longest: L, tokens, whole, >= 1; default 20480, the paper's.
        buffer: B, tokens, whole, in [1, longest]; default 4096, the paper's.
    """

    longest: int = 20480
    buffer: int = 4096

    def __post_init__(self) -> None:
        within(self, "[1, inf)", "longest", integer=True)
        in_range("SoftOverlong.buffer", self.buffer, f"[1, {self.longest}]", integer=True)

    def __call__(
        self,
        prompts: Texts,
        completions: Texts,
        completion_ids: Sequence[Sequence[int]],
        **columns: Any,
    ) -> list[float]:
        free = self.longest - self.buffer
        return [
            -min(1.0, max(0.0, (len(ids) - free) / self.buffer)) + 0.0 for ids in completion_ids
        ]
