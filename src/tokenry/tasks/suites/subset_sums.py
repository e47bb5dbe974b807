"""Subset sums with signs: what is the smallest sum that is not negative (MNNS)?

Put a plus or a minus before each digit; `worlds.signed_sums` has the equations, the traces and the
targets of a continuous chain of thought. Permutations of the same digits have the same answer, so
that `part` keeps them on one side of the split.

Source: Continuous Chain of Thought Enables Parallel Exploration and Reasoning (arXiv 2505.23648).
Ours: the wording, and the answer as a trace.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random
from typing import ClassVar, Literal, get_args

from tokenry.core.checks import one_of, within
from tokenry.core.errors import InputError
from tokenry.tasks.distinct import distinct_items
from tokenry.tasks.task import Answer, Generate, Item, Task, task
from tokenry.tasks.worlds.signed_sums import part_of, signed_sums, smallest_sum, traces

Form = Literal["sum", "trace"]
Part = Literal["all", "train", "test"]
ANSWER = re.compile(r"(0|-?[1-9][0-9]{0,8})( (0|-?[1-9][0-9]{0,8}))*")


def _examples() -> list[SubsetSums]:
    return [SubsetSums(), SubsetSums(form="trace", part="train"), SubsetSums(6, 20, part="test")]


@task("subset_sums", paper=129, examples=_examples)
@dataclass(frozen=True)
class SubsetSums(Task):
    """Asks for the smallest sum with signs, or for a trace that ends in it.

    Args:
        length: m, digits of an item, in [2, 16]; default 4.
        largest: digits are drawn from 1 to this, >= 1; default 9.
        form: of the answer: the "sum" (default), or the "trace" of its m partial sums.
        part: of all multisets of digits: "all" (default), "train" (4/5) or "test" (1/5).

    Raises:
        InputError: a setting out of range.
    """

    length: int = 4
    largest: int = 9
    form: Form = "sum"
    part: Part = "all"

    primary: ClassVar[str] = "right"

    def __post_init__(self) -> None:
        within(self, "[2, 16]", "length", integer=True)
        within(self, "[1, 1000000]", "largest", integer=True)
        one_of("SubsetSums.form", self.form, get_args(Form))
        one_of("SubsetSums.part", self.part, get_args(Part))

    def items(self, count: int, seed: int) -> list[Item]:
        """Different rows of digits; `about` has them."""
        return distinct_items(self._item, count, seed)

    def score(self, item: Item, answer: Answer) -> dict[str, float]:
        """right: the sum, alone, or a trace of it. valid: whole numbers, "-3 -2 2 0", that are some
        signs' sum or trace. Spaces between numbers are single; no plus sign, no "-0"."""
        digits, text = item.about["digits"], str(answer).strip()
        numbers = [int(one) for one in text.split(" ")] if ANSWER.fullmatch(text) else []
        if self.form == "sum":
            valid = len(numbers) == 1 and numbers[0] in signed_sums(digits)
        else:
            steps = zip([0, *numbers], numbers, digits, strict=False)
            valid = len(numbers) == len(digits) and all(abs(b - a) == d for a, b, d in steps)
        right = valid and numbers[-1] == smallest_sum(digits)
        return {"right": float(right), "valid": float(valid)}

    def _item(self, random: Random) -> Item:
        for _ in range(1000):
            digits = [random.randint(1, self.largest) for _ in range(self.length)]
            if self.part in ("all", part_of(digits)):
                break
        else:
            raise InputError(f"no digits 1 to {self.largest} are of the part {self.part!r}")
        what = "sum" if self.form == "sum" else "sums after each of them"
        prompt = (
            f"Put a plus or a minus before each of {' '.join(map(str, digits))} so that their sum "
            f"is the smallest that is not negative. Write only the {what}.\n"
        )
        best = traces(digits, 1)[0]
        solution = " ".join(map(str, best if self.form == "trace" else best[-1:]))
        limit = 8 + 8 * self.length * (self.form == "trace")
        return Item(Generate(prompt, limit, ("\n",)), solution, {"digits": digits})
