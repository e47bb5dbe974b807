"""Divide and conquer: half of what is left, again and again."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any

from tokenry.tasks.suites.tail.algorithm import Algorithm, Inputs, onto_tape
from tokenry.tasks.suites.tail.trace import Machine


class BinarySearch(Algorithm):
    """The first position of a sorted row whose number is not below x; positions begin at 1, and
    where all are below it is one more than the row has. About log2 n halvings, never fewer by luck.
    """

    name, paradigm = "binary_search", "divide and conquer"
    shortest, longest = 5, 10

    def sample(self, random: Random, low: int, high: int) -> Inputs:
        numbers = sorted(random.sample(range(1000), random.randint(low, high)))
        x = random.choice([random.choice(numbers), random.randrange(1000)])
        return {"numbers": numbers, "x": x}

    def size(self, inputs: Inputs) -> int:
        return len(inputs["numbers"])

    def question(self, inputs: Inputs) -> str:
        row = " ".join(map(str, inputs["numbers"]))
        return (
            f"At which position of {row} does the first number stand that is {inputs['x']} or "
            f"more? If there is none, write {self.size(inputs) + 1}."
        )

    def tape(self, inputs: Inputs) -> dict[str, Any]:
        size = self.size(inputs)
        return onto_tape("a", inputs["numbers"]) | {"x": inputs["x"], "lo": 0, "hi": size}

    def run(self, inputs: Inputs, machine: Machine) -> None:
        low, high, turn = 0, self.size(inputs), 0
        while low < high:
            low, high = machine.fetch("lo", "hi")
            machine.write(f"half{turn}", {"m": (low + high) // 2}, f"look{turn}", block=turn)
            (middle,) = machine.fetch("m")
            number, x = machine.fetch(f"a{middle}", "x")
            low, high = (middle + 1, high) if number < x else (low, middle)
            values = {"lo": low} if number < x else {"hi": high}
            then = f"half{turn + 1}" if low < high else "end"
            machine.write(f"look{turn}", values, then, block=turn)
            turn += 1

    def answer(self, inputs: Inputs, memory: Mapping[str, Any]) -> str:
        return str(memory["lo"] + 1)
