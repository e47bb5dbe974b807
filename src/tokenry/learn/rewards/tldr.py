"""TLDR: correct answers are worth more when they are short, by how much the prompt's level says.

    R_i = c_i - lambda_l c_i sigma( (n_i - mu) / (s + 1) )
    R_i = c_i ( 1 - lambda_l clip( |n_i - n_l| / n_l, 0, 1 ) )          with target lengths n_l

c_i is the correctness of completion i, n_i its length in tokens, mu and s mean and standard
deviation of the lengths of the correct completions of its group, l the level of its prompt. A wrong
answer gets 0 whatever its length, so that correctness is never traded for brevity.

Source: Making Small Language Models Efficient Reasoners: Intervention, Supervision, Reinforcement
(arXiv 2505.07961). Reconstructed: both formulas, the weights of the levels, and s with the number
of correct completions as its denominator; the paper's own formulas could not be found.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, pstdev
from typing import Any

from tokenry.core.checks import in_range
from tokenry.core.errors import InputError, UnknownNameError
from tokenry.learn.rewards.answers import ExactAnswer
from tokenry.learn.rewards.base import Example, RewardFn, Texts, columns_of, reward, values_of


def length_regularized_reward(
    correct: Sequence[float],
    lengths: Sequence[int],
    groups: Sequence[Any],
    level_weight: Sequence[float],
) -> list[float]:
    """R_i of the first equation, [N].

    Args:
        correct: c_i, [N], >= 0; a completion is correct when it is above 0.
        lengths: n_i, tokens, [N]. groups: what each is compared within, [N].
        level_weight: lambda of each row's level, [N], in [0, 1].
    """
    rows = list(zip(correct, lengths, groups, level_weight, strict=True))
    own: dict[Any, list[int]] = {}
    for value, length, group, _ in rows:
        if value > 0:
            own.setdefault(group, []).append(length)
    scale = {group: (fmean(lengths), pstdev(lengths) + 1) for group, lengths in own.items()}
    rewards = []
    for value, length, group, weight in rows:
        mean, spread = scale.get(group, (0.0, 1.0))
        share = 0.5 * (1 + math.tanh(0.5 * (length - mean) / spread))  # the logistic function
        rewards.append(value * (1 - weight * share) if value > 0 else 0.0)
    return rewards


def _examples() -> list[Example]:
    columns = {
        "answer": ["7"] * 3,
        "level": ["short"] * 3,
        "completion_ids": [[1], [1] * 5, [1] * 2],
        "groups": [0, 0, 0],
    }
    return [Example(TLDR(), ["8", "7", " 7"], columns, better=[(0, 1), (1, 2)])]


@reward("tldr", paper=73, examples=_examples)
@dataclass(frozen=True)
class TLDR:
    """Correctness with a price on length; the column `level` says how high it is.

    Args:
        correct: a reward, or its name, that gives c_i in [0, inf); default ExactAnswer().
        weights: lambda of each level, in [0, 1]; default short 0.5, medium 0.2, long 0.
        targets: n_l of each level, tokens, >= 1; None (default) compares within the group.
        end_of_thinking: id of the token up to which a completion's length counts, itself
            included; None (default): all of it.

    Raises:
        InputError: a number out of range. UnknownNameError: a level without a weight or target.
    """

    correct: str | RewardFn = field(default_factory=ExactAnswer)
    weights: Mapping[str, float] = field(
        default_factory=lambda: {"short": 0.5, "medium": 0.2, "long": 0.0}
    )
    targets: Mapping[str, int] | None = None
    end_of_thinking: int | None = None

    def __post_init__(self) -> None:
        for level, weight in self.weights.items():
            in_range(f"TLDR.weights[{level!r}]", weight, "[0, 1]")
        for level, target in (self.targets or {}).items():
            in_range(f"TLDR.targets[{level!r}]", target, "[1, inf)")

    @property
    def required_columns(self) -> tuple[str, ...]:
        return columns_of(self.correct)

    def __call__(
        self,
        prompts: Texts,
        completions: Texts,
        completion_ids: Sequence[Sequence[int]],
        groups: Sequence[Any],
        level: Sequence[str],
        **columns: Any,
    ) -> list[float | None]:
        known = {"completion_ids": completion_ids, "groups": groups, "level": level, **columns}
        correct = values_of(self.correct, prompts, completions, known)
        if wrong := [value for value in correct if value is not None and not value >= 0]:
            raise InputError(f"correctness must be in [0, inf), got {wrong[0]}")
        lengths = [self._length(ids) for ids in completion_ids]
        weights = [_of_level(self.weights, name) for name in level]
        scored = [value or 0.0 for value in correct]
        if self.targets is None:
            rewards = length_regularized_reward(scored, lengths, groups, weights)
        else:
            wanted = [_of_level(self.targets, name) for name in level]
            rewards = [
                c * (1 - weight * min(1.0, abs(n - target) / target))
                for c, n, weight, target in zip(scored, lengths, weights, wanted, strict=True)
            ]
        return [None if c is None else r for c, r in zip(correct, rewards, strict=True)]

    def _length(self, ids: Sequence[int]) -> int:
        if self.end_of_thinking in ids:
            return list(ids).index(self.end_of_thinking) + 1  # type: ignore[arg-type]
        return len(ids)


def _of_level(values: Mapping[str, Any], level: Any) -> Any:
    if level not in values:
        raise UnknownNameError("level", str(level), values)
    return values[level]
