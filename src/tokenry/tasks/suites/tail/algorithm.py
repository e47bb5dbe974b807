"""Algorithm: instances of a size, and a program that solves them step by step on a machine."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any, ClassVar, Protocol

from tokenry.tasks.suites.tail.trace import Machine

Inputs = dict[str, Any]
"""An instance, as JSON."""
ABSENT = "-"
"""What stands where there is no digit, node or distance."""


class Algorithm(Protocol):
    """A problem, its instances in three tiers of sizes, and the program that solves them:

    S: [shortest, longest]    M: [longest + 1, 3 longest]    L: [3 longest + 1, 6 longest]

    `answer` reads the result off the memory that the program left, so that a trace replayed has it.
    """

    name: ClassVar[str]
    paradigm: ClassVar[str]
    shortest: ClassVar[int]
    longest: ClassVar[int]

    def sample(self, random: Random, low: int, high: int) -> Inputs:
        """An instance whose size is in [low, high]."""
        ...

    def size(self, inputs: Inputs) -> int: ...

    def question(self, inputs: Inputs) -> str: ...

    def tape(self, inputs: Inputs) -> dict[str, Any]:
        """The memory before the first step."""
        ...

    def run(self, inputs: Inputs, machine: Machine) -> None:
        """Solve it: every value comes from `machine.fetch`, every result goes to `machine.write`;
        of the inputs only the bounds of loops are used."""
        ...

    def answer(self, inputs: Inputs, memory: Mapping[str, Any]) -> str: ...


def tier_sizes(algorithm: Algorithm) -> dict[str, tuple[int, int]]:
    """The sizes of the tiers, ends included; L ends at six times the end of S."""
    longest = algorithm.longest
    return {
        "S": (algorithm.shortest, longest),
        "M": (longest + 1, 3 * longest),
        "L": (3 * longest + 1, 6 * longest),
    }


def onto_tape(name: str, values: Any, first: int = 0) -> dict[str, Any]:
    """name0=.. name1=.. : a row of values at numbered addresses."""
    return {f"{name}{number}": value for number, value in enumerate(values, first)}


def digits_of(name: str, number: str, places: int) -> dict[str, Any]:
    """The digits of a number from the lowest, absent ones marked."""
    digits = [int(digit) for digit in reversed(number)]
    return onto_tape(name, digits + [ABSENT] * (places - len(digits)))


def drawn_number(random: Random, digits: int) -> str:
    """A number of so many digits, the first of them not 0."""
    return str(random.randrange(10 ** (digits - 1), 10**digits))


def drawn_text(random: Random, length: int, alphabet: str) -> str:
    return "".join(random.choice(alphabet) for _ in range(length))


def value_of(digit: Any) -> int:
    """The digit, or 0 where there is none."""
    return 0 if digit == ABSENT else digit
