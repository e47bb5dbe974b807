"""Expressions of whole numbers: which numbers they use, and their exact value.

    expression = number | ( expression ) | expression o expression,    o one of + - * /

* and / bind more tightly than + and -, equals group from the left, and the value is a fraction.
There are no signs in front of numbers, no other characters but spaces, and nothing is ever run as
a program: the text is read with two stacks, so that depth costs no recursion.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from operator import add, mul, sub, truediv
from typing import Literal, get_args

from tokenry.core.checks import one_of
from tokenry.tasks.verifiers.base import Example, Verifier, verifier

Use = Literal["exactly", "at_most"]
SYMBOL = re.compile(r" *([0-9]+|[-+*/()])")
BINDS = {"+": 1, "-": 1, "*": 2, "/": 2}
OPERATIONS = {"+": add, "-": sub, "*": mul, "/": truediv}


@dataclass(frozen=True)
class Expression:
    """symbols: numbers and operations, the operations after what they work on."""

    symbols: tuple[str, ...]

    @property
    def numbers(self) -> list[str]:
        """The numbers as written, in their order."""
        return [symbol for symbol in self.symbols if symbol not in BINDS]

    def value(self) -> Fraction | None:
        """The exact value; None where it divides by zero."""
        stack: list[Fraction] = []
        for symbol in self.symbols:
            if symbol not in BINDS:
                stack.append(Fraction(int(symbol)))
                continue
            right, left = stack.pop(), stack.pop()
            if symbol == "/" and not right:
                return None
            stack.append(OPERATIONS[symbol](left, right))
        return stack[0]


def parsed(text: str) -> Expression | None:
    """The expression that the whole text is, spaces aside; None if it is none."""
    output: list[str] = []
    waiting: list[str] = []
    wants_number, position, text = True, 0, text.strip()
    while position < len(text):
        match = SYMBOL.match(text, position)
        if match is None:
            return None
        position, symbol = match.end(), match[1]
        if symbol == "(" or symbol.isdigit():
            if not wants_number:
                return None
            (waiting if symbol == "(" else output).append(symbol)
            wants_number = symbol == "("
            continue
        if wants_number:
            return None  # an operation or a closing bracket where a number belongs
        # what binds at least as tightly and came before is done first
        while waiting and waiting[-1] != "(" and BINDS[waiting[-1]] >= BINDS.get(symbol, 0):
            output.append(waiting.pop())
        if symbol != ")":
            waiting.append(symbol)
            wants_number = True
        elif not waiting or waiting.pop() != "(":
            return None
    if wants_number or "(" in waiting:
        return None
    return Expression((*output, *reversed(waiting)))


def uses(expression: Expression, numbers: Sequence[int], use: Use) -> bool:
    """Whether it uses each number exactly as often as it is given, or at most so often."""
    written, given = Counter(expression.numbers), Counter(map(str, numbers))
    return written == given if use == "exactly" else written <= given


@verifier(
    "reaches",
    examples=lambda: [
        Example(
            reaches([4, 6, 6, 2], 24),
            [("(6 - 4) * 6 * 2",)],
            [("4 * 6",), ("6 * 2 * 2",), ("",)],
        )
    ],
)
def reaches(numbers: Sequence[int], target: int, use: Use = "exactly") -> Verifier:
    """The response is an expression of the given numbers whose value is the target.

    Args:
        numbers: whole numbers >= 0. A number that is given twice may be used twice.
        target: the value, exactly.
        use: every number "exactly" as often as it is given (default), or "at_most" so often.
    """
    one_of("use", use, get_args(Use))

    def check(response: str) -> bool:
        expression = parsed(response)
        # the numbers first: what is evaluated then is bounded by what was given
        return (
            expression is not None
            and uses(expression, numbers, use)
            and expression.value() == target
        )

    return Verifier(f"reaches {target}", check)
