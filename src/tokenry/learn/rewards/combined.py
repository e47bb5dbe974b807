"""Rewards made of rewards: weighted sums, and gates.

    weighted_sum   r_i = sum_k w_k r_ik          over the k that have a value for row i
    gate           r_i = r'_i where g_i >= least, `otherwise` elsewhere

Parts are rewards or names in the catalogue. A row that no part of a sum scores has no reward; nor
has one that the gate does not score, or that it lets pass to a reward which does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenry.core.checks import in_range
from tokenry.core.errors import InputError, ShapeError
from tokenry.learn.rewards.base import Example, RewardFn, Texts, columns_of, reward, values_of

PARTS = ("exact_answer", "tags")
ROWS = ["b", "<answer>a</answer>", "<think>c</think><answer>a</answer>"]


def _sum_examples() -> list[Example]:
    return [Example(WeightedSum(PARTS, (1.0, 0.5)), ROWS, {"answer": ["a"] * 3}, [(0, 1), (1, 2)])]


@reward("weighted_sum", examples=_sum_examples)
@dataclass(frozen=True)
class WeightedSum:
    """sum_k w_k r_k.

    Args:
        rewards: the parts, one at least. weights: w_k, finite; None: 1 each.
    """

    rewards: Sequence[str | RewardFn]
    weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.rewards, str) or not self.rewards:
            raise InputError(f"a sum needs a list of rewards, got {self.rewards!r}")
        if self.weights is not None and len(self.weights) != len(self.rewards):
            raise ShapeError(f"{len(self.weights)} weights for {len(self.rewards)} rewards")
        for weight in self.weights or ():
            in_range("a weight of WeightedSum", weight, "(-inf, inf)")

    @property
    def required_columns(self) -> tuple[str, ...]:
        return columns_of(*self.rewards)

    def __call__(self, prompts: Texts, completions: Texts, **columns: Any) -> list[float | None]:
        weights = [1.0] * len(self.rewards) if self.weights is None else self.weights
        parts = [values_of(part, prompts, completions, columns) for part in self.rewards]
        totals: list[float | None] = []
        for values in zip(*parts, strict=True):
            own = [w * v for w, v in zip(weights, values, strict=True) if v is not None]
            totals.append(sum(own) if own else None)
        return totals


def _gate_examples() -> list[Example]:
    return [Example(Gate("tags", "exact_answer"), ROWS, {"answer": ["a"] * 3}, [(0, 2), (1, 2)])]


@reward("gate", examples=_gate_examples)
@dataclass(frozen=True)
class Gate:
    """A reward that counts only where another one is high enough.

    Args:
        gate: g. reward: r'. least: of g, finite; default 1. otherwise: r where g is below it,
            finite; default 0.
    """

    gate: str | RewardFn
    reward: str | RewardFn
    least: float = 1.0
    otherwise: float = 0.0

    def __post_init__(self) -> None:
        in_range("Gate.least", self.least, "(-inf, inf)")
        in_range("Gate.otherwise", self.otherwise, "(-inf, inf)")

    @property
    def required_columns(self) -> tuple[str, ...]:
        return columns_of(self.gate, self.reward)

    def __call__(self, prompts: Texts, completions: Texts, **columns: Any) -> list[float | None]:
        gates = values_of(self.gate, prompts, completions, columns)
        values = values_of(self.reward, prompts, completions, columns)
        return [
            None if gate is None else value if gate >= self.least else self.otherwise
            for gate, value in zip(gates, values, strict=True)
        ]
