"""Simulation, of calculation on paper: addition, division by a digit."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any

from tokenry.tasks.suites.tail.algorithm import (
    ABSENT,
    Algorithm,
    Inputs,
    digits_of,
    drawn_number,
    onto_tape,
    value_of,
)
from tokenry.tasks.suites.tail.trace import Machine


class Addition(Algorithm):
    """a + b, digit by digit from the right: one step for each place, and one for the carry."""

    name, paradigm = "addition", "simulation"
    shortest, longest = 2, 8

    def sample(self, random: Random, low: int, high: int) -> Inputs:
        size = random.randint(low, high)
        pair = [drawn_number(random, size), drawn_number(random, random.randint(1, size))]
        random.shuffle(pair)
        return {"a": pair[0], "b": pair[1]}

    def size(self, inputs: Inputs) -> int:
        return max(len(inputs["a"]), len(inputs["b"]))

    def question(self, inputs: Inputs) -> str:
        return f"What is {inputs['a']} + {inputs['b']}?"

    def tape(self, inputs: Inputs) -> dict[str, Any]:
        places = self.size(inputs) + 1
        numbers = digits_of("a", inputs["a"], places) | digits_of("b", inputs["b"], places)
        return numbers | {"c": 0}

    def run(self, inputs: Inputs, machine: Machine) -> None:
        places = self.size(inputs)
        for i in range(places + 1):
            a, b, c = machine.fetch(f"a{i}", f"b{i}", "c")
            total = value_of(a) + value_of(b) + c
            digit = ABSENT if i == places and not total else total % 10
            then = f"i{i + 1}" if i < places else "end"
            machine.write(f"i{i}", {"t": total, f"s{i}": digit, "c": total // 10}, then)

    def answer(self, inputs: Inputs, memory: Mapping[str, Any]) -> str:
        digits = [str(memory[f"s{i}"]) for i in reversed(range(self.size(inputs) + 1))]
        return "".join(digits).removeprefix(ABSENT)


class Division(Algorithm):
    """a divided by a digit d from the left: t = 10 r + a_i, q_i = t div d, r = t mod d."""

    name, paradigm = "division", "simulation"
    shortest, longest = 3, 8

    def sample(self, random: Random, low: int, high: int) -> Inputs:
        size = random.randint(low, high)
        return {"a": drawn_number(random, size), "d": random.randint(2, 9)}

    def size(self, inputs: Inputs) -> int:
        return len(inputs["a"])

    def question(self, inputs: Inputs) -> str:
        return f"What is {inputs['a']} divided by {inputs['d']}, and the remainder?"

    def tape(self, inputs: Inputs) -> dict[str, Any]:
        return onto_tape("a", map(int, inputs["a"])) | {"d": inputs["d"], "r": 0}

    def run(self, inputs: Inputs, machine: Machine) -> None:
        size = self.size(inputs)
        for i in range(size):
            a, r, d = machine.fetch(f"a{i}", "r", "d")
            t = 10 * r + a
            then = f"i{i + 1}" if i + 1 < size else "end"
            machine.write(f"i{i}", {"t": t, f"q{i}": t // d, "r": t % d}, then)

    def answer(self, inputs: Inputs, memory: Mapping[str, Any]) -> str:
        quotient = "".join(str(memory[f"q{i}"]) for i in range(self.size(inputs)))
        return f"{quotient.lstrip('0') or '0'} r {memory['r']}"
