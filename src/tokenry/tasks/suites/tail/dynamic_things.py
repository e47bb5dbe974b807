"""Dynamic programming over things to pack: a table filled cell by cell, a row being a block."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any

from tokenry.tasks.suites.tail.algorithm import Algorithm, Inputs, onto_tape
from tokenry.tasks.suites.tail.trace import Machine


class Knapsack(Algorithm):
    """t_ic = max(t_(i-1)c, t_(i-1)(c-w_i) + v_i where w_i <= c): each thing once, weight c."""

    name, paradigm = "knapsack", "dynamic programming"
    shortest, longest = 2, 4

    def sample(self, random: Random, low: int, high: int) -> Inputs:
        things = [
            [random.randint(1, 6), random.randint(1, 20)] for _ in range(random.randint(low, high))
        ]
        return {"things": things, "capacity": random.randint(4, 8)}

    def size(self, inputs: Inputs) -> int:
        return len(inputs["things"])

    def question(self, inputs: Inputs) -> str:
        things = ", ".join(f"{weight} and {value}" for weight, value in inputs["things"])
        return (
            f"Things have these weights and values: {things}. What is the most value that weighs "
            f"no more than {inputs['capacity']}, each thing once?"
        )

    def tape(self, inputs: Inputs) -> dict[str, Any]:
        weights, values = zip(*inputs["things"], strict=True)
        memory = onto_tape("w", weights, 1) | onto_tape("v", values, 1)
        memory |= {f"t{i},0": 0 for i in range(self.size(inputs) + 1)}
        return memory | {f"t0,{c}": 0 for c in range(inputs["capacity"] + 1)}

    def run(self, inputs: Inputs, machine: Machine) -> None:
        full = inputs["capacity"]
        cells = [(i, c) for i in range(1, self.size(inputs) + 1) for c in range(1, full + 1)]
        for (i, c), after in zip(cells, [*cells[1:], None], strict=True):
            weight, best = machine.fetch(f"w{i}", f"t{i - 1},{c}")
            if weight <= c:
                value, rest = machine.fetch(f"v{i}", f"t{i - 1},{c - weight}")
                best = max(best, rest + value)
            then = f"c{after[0]},{after[1]}" if after else "end"
            machine.write(f"c{i},{c}", {f"t{i},{c}": best}, then, block=i)

    def answer(self, inputs: Inputs, memory: Mapping[str, Any]) -> str:
        return str(memory[f"t{self.size(inputs)},{inputs['capacity']}"])
