"""Arithmetic: multi-digit and modular calculations, with the digits in either direction.

    a_1 o a_2 o ... o a_n            o one of + - *, the same throughout, from left to right
    (a_1 o a_2 o ... o a_n) mod m    in 0 .. m - 1, also of a negative value

Written from the right, 120 is "021" and -45 is "-54": the sign stays in front. The answer is that
text and nothing else, up to white space around it: "+7", "007" for 7, "-0", "1,000" and "= 7" are
wrong.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add, mul, sub
from random import Random
from typing import ClassVar, Literal, get_args

from tokenry.core.checks import one_of, within
from tokenry.core.errors import InputError
from tokenry.tasks.distinct import distinct_items
from tokenry.tasks.task import Answer, Generate, Item, Task, task

OPERATIONS = {"+": add, "-": sub, "*": mul}
Backwards = Literal["none", "answer", "all"]
NUMBER = re.compile(r"-?[0-9]+")


def calculated(numbers: Sequence[int], operation: str, modulus: int | None = None) -> int:
    """a_1 o a_2 o ..., from left to right, modulo `modulus` if there is one."""
    value = reduce(OPERATIONS[operation], numbers)
    return value if modulus is None else value % modulus


def written(value: int, backwards: bool = False) -> str:
    """The digits of a number, the least significant first if `backwards`; the sign in front."""
    digits = str(abs(value))
    return "-" * (value < 0) + (digits[::-1] if backwards else digits)


def _examples() -> list[Arithmetic]:
    return [Arithmetic(), Arithmetic(4, 3, ("-",), 97), Arithmetic(5, backwards="all")]


@task("arithmetic", examples=_examples)
@dataclass(frozen=True)
class Arithmetic(Task):
    """Calculations whose right result is one text.

    Args:
        digits: of every number, exactly, >= 1; default 3. With 1 the numbers are 0 to 9.
        terms: numbers in a calculation, >= 2; default 2.
        operations: of "+", "-", "*"; each item draws one.
        modulus: the result is taken modulo this, >= 2; None (default) for the result itself.
        backwards: whose digits go from the least significant to the most: "none" (default), those
            of the "answer", or those of "all" numbers but the modulus.

    Raises:
        InputError: a setting out of range.
    """

    digits: int = 3
    terms: int = 2
    operations: Sequence[str] = ("+", "-", "*")
    modulus: int | None = None
    backwards: Backwards = "none"

    primary: ClassVar[str] = "right"

    def __post_init__(self) -> None:
        within(self, "[1, inf)", "digits", integer=True)
        within(self, "[2, inf)", "terms", integer=True)
        within(self, "[2, inf)", "modulus", integer=True, optional=True)
        one_of("Arithmetic.backwards", self.backwards, get_args(Backwards))
        if not self.operations:
            raise InputError("arithmetic needs an operation: some of +, -, *")
        for operation in self.operations:
            one_of("an operation", operation, OPERATIONS)

    def items(self, count: int, seed: int) -> list[Item]:
        """Different calculations; `about` has the numbers, the operation and the answer."""
        return distinct_items(self._item, count, seed)

    def score(self, item: Item, answer: Answer) -> dict[str, float]:
        """right: the answer is the result. well_formed: it is digits with or without a minus."""
        text = str(answer).strip()
        return {
            "right": float(text == item.about["answer"]),
            "well_formed": float(NUMBER.fullmatch(text) is not None),
        }

    def _item(self, random: Random) -> Item:
        lowest = 10 ** (self.digits - 1) if self.digits > 1 else 0
        numbers = [random.randrange(lowest, 10**self.digits) for _ in range(self.terms)]
        operation = random.choice(list(self.operations))
        result = written(calculated(numbers, operation, self.modulus), self.backwards != "none")
        shown = f" {operation} ".join(written(one, self.backwards == "all") for one in numbers)
        if self.modulus is not None:
            shown = f"({shown}) mod {self.modulus}"
        directions = {
            "none": "",
            "answer": " Write the digits of the result from the last to the first.",
            "all": " The digits of the numbers go from the last to the first, also in the result.",
        }
        prompt = f"Calculate {shown}.{directions[self.backwards]} Write only the result.\n"
        limit = 8 + 2 * self.digits * self.terms  # a token per digit is the most that is needed
        about = {"numbers": numbers, "operation": operation, "answer": result}
        return Item(Generate(prompt, limit, ("\n",)), result, about)
