"""Constraint satisfaction as a reward: the rate of the verifiers that a completion passes.

    r_i = sum_k w_k c_k(y_i) / sum_k w_k            c_k: `tasks.verifiers`, w_k: their weights

Source: From Instructions to Constraints (arXiv 2403.06326), for its constraint sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenry.core.errors import InputError
from tokenry.learn.rewards.base import Example, Texts, reward
from tokenry.tasks.verifiers.base import Verifier, verifier
from tokenry.tasks.verifiers.programs import ConstraintSet


def _examples() -> list[Example]:
    return [
        Example(
            ConstraintRate(("one_of(['yes', 'no'])", "length_between(1, 2)")),
            ["one two three", "perhaps", "yes"],
            better=[(0, 1), (1, 2)],
        )
    ]


@reward("constraint_rate", examples=_examples)
@dataclass(frozen=True)
class ConstraintRate:
    """In [0, 1], 1 for a completion that passes every check.

    Args:
        checks: verifiers, or calls of those of the catalogue, "length_between(5, 60)". Those that
            look at a group see all completions of a prompt. A call can be sent to a process of its
            own, a verifier's closure cannot.

    Raises:
        InputError: no checks, or one that cannot be read. UnknownNameError: an unknown one.
    """

    checks: Sequence[str | Verifier]

    def __post_init__(self) -> None:
        if isinstance(self.checks, str):
            raise InputError(f"checks must be a list, got the text {self.checks!r}")
        self._constraints()

    def __call__(
        self, prompts: Texts, completions: Texts, groups: Sequence[Any], **columns: Any
    ) -> list[float]:
        return self._constraints().csr(prompts, completions, groups)

    def _constraints(self) -> ConstraintSet:
        made = (verifier.made(check) if isinstance(check, str) else check for check in self.checks)
        return ConstraintSet(tuple(made))
