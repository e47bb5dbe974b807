"""Countdown: make a target out of given numbers with + - * / and brackets.

    numbers n_1 .. n_k, target t  ->  an expression of the numbers whose exact value is t

Every item is solvable: the target is the value of an expression that was built first, in which all
steps are whole numbers >= 0, divisions without remainder among them, and which is its solution. The
verifier takes any expression with the right value; fractions may come up on the way, as 8 / (3 - 8
/ 3) is 24. It must be the expression alone: no "= 24", no sign in front of a number, no other marks
for the operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar, get_args

from tokenry.core.checks import one_of, within
from tokenry.core.errors import InputError
from tokenry.tasks.distinct import distinct_items
from tokenry.tasks.task import Answer, Generate, Item, Task, task
from tokenry.tasks.verifiers.expressions import Use, parsed, reaches, uses

ATTEMPTS = 10_000


def _examples() -> list[Countdown]:
    return [Countdown(), Countdown(4, use="at_most"), Countdown(6, 1, 100, 100, 999)]


@task("countdown", examples=_examples)
@dataclass(frozen=True)
class Countdown(Task):
    """Draws numbers and a target that they can make.

    Args:
        count: numbers in an item, >= 2; default 3.
        lowest: of a number, >= 1; default 1 to 20.
        highest: see `lowest`.
        target_lowest: of the target, >= 0; default 10 to 100.
        target_highest: see `target_lowest`.
        use: every number "exactly" once (default), or "at_most" once.

    Raises:
        InputError: a setting out of range, or 10,000 draws that make no target in its range.
    """

    count: int = 3
    lowest: int = 1
    highest: int = 20
    target_lowest: int = 10
    target_highest: int = 100
    use: Use = "exactly"

    primary: ClassVar[str] = "right"

    def __post_init__(self) -> None:
        within(self, "[2, inf)", "count", integer=True)
        within(self, "[1, inf)", "lowest", integer=True)
        within(self, f"[{self.lowest}, inf)", "highest", integer=True)
        within(self, "[0, inf)", "target_lowest", integer=True)
        within(self, f"[{self.target_lowest}, inf)", "target_highest", integer=True)
        one_of("Countdown.use", self.use, get_args(Use))

    def items(self, count: int, seed: int) -> list[Item]:
        """Different sets of numbers and targets; `about` has both."""
        return distinct_items(self._item, count, seed)

    def score(self, item: Item, answer: Answer) -> dict[str, float]:
        """right: reaches the target. allowed: uses the numbers as it may. well_formed: is an
        expression. Each of them implies the next."""
        text, numbers = str(answer), item.about["numbers"]
        expression = parsed(text)
        return {
            "right": reaches(numbers, item.about["target"], self.use)(text),
            "allowed": float(expression is not None and uses(expression, numbers, self.use)),
            "well_formed": float(expression is not None),
        }

    def _item(self, random: Random) -> Item:
        for _ in range(ATTEMPTS):
            numbers = [random.randint(self.lowest, self.highest) for _ in range(self.count)]
            used = self.count if self.use == "exactly" else random.randint(2, self.count)
            target, solution = built(random.sample(numbers, used), random)
            if self.target_lowest <= target <= self.target_highest:
                break
        else:
            raise InputError(
                f"{ATTEMPTS} draws of {self.count} numbers from {self.lowest} to {self.highest} "
                f"made no target from {self.target_lowest} to {self.target_highest}"
            )
        numbers.sort()
        prompt = (
            f"Make {target} with the numbers {', '.join(map(str, numbers))}. Use each number "
            f"{self.use.replace('_', ' ')} once, with +, -, *, / and brackets. Write only the "
            "expression.\n"
        )
        about = {"numbers": numbers, "target": target}
        return Item(Generate(prompt, 16 * self.count, ("\n",)), solution, about)


def built(numbers: Sequence[int], random: Random) -> tuple[int, str]:
    """A random expression of all the numbers, its steps whole numbers >= 0: value and text."""
    parts = [(number, str(number)) for number in numbers]
    while len(parts) > 1:
        pair = [parts.pop(random.randrange(len(parts))) for _ in range(2)]
        (large, first), (small, second) = sorted(pair, key=lambda part: -part[0])
        values = {"+": large + small, "-": large - small, "*": large * small}
        if small and large % small == 0:
            values["/"] = large // small
        operation = random.choice(list(values))
        parts.append((values[operation], f"({first} {operation} {second})"))
    value, text = parts[0]
    return value, text[1:-1] if text.startswith("(") else text
