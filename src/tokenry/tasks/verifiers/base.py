"""What a verifier is: a program that judges a text, with its prompt, or together with others.

    v(y)                       scope "response"
    v(x, y)                    scope "pair", x the prompt
    v((x_1 .. x_n), (y_1 .. y_n))   scope "group": one value for all of its members

in [0, 1], 1 for a text that is as it should be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from tokenry.core.checks import one_of, within
from tokenry.core.errors import InputError
from tokenry.core.registry import Role

Scope = Literal["response", "pair", "group"]


@dataclass(frozen=True)
class Verifier:
    """The role: v(text) in [0, 1], a program's judgement of a response. Registered are functions
    that make one.

    Args:
        name: what it checks, in words.
        check: (response), (prompt, response) or (prompts, responses), by `scope`; a bool or a
            number in [0, 1].
        scope: "response" (default), "pair" or "group".
        weight: its share in a rate, in (0, inf); default 1.

    Raises:
        InputError: a scope that does not exist, a weight out of range, a value outside [0, 1].
    """

    name: str
    check: Callable[..., float]
    scope: Scope = "response"
    weight: float = 1.0

    def __post_init__(self) -> None:
        one_of(f"the scope of {self.name}", self.scope, get_args(Scope))
        within(self, "(0, inf)", "weight")

    def __call__(self, *texts: Any) -> float:
        value = float(self.check(*texts))
        if not 0 <= value <= 1:
            raise InputError(f"{self.name} gave {value}: a verifier gives a value in [0, 1]")
        return value


class Example(NamedTuple):
    """A verifier as its contract test takes it: with arguments for which it gives 1, and less."""

    verifier: Verifier
    accepts: Sequence[tuple[Any, ...]]
    refuses: Sequence[tuple[Any, ...]]


verifier = Role("verifier", Verifier, ("tokenry.tasks.verifiers",))
