"""Iteration: the same step again and again."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any

from tokenry.tasks.suites.tail.algorithm import Algorithm, Inputs
from tokenry.tasks.suites.tail.trace import Machine


class PopulationGrowth(Algorithm):
    """p <- p + floor(p rate / 100) + m, once for each year. The rule of a year is reconstructed."""

    name, paradigm = "population_growth", "iteration"
    shortest, longest = 2, 5

    def sample(self, random: Random, low: int, high: int) -> Inputs:
        years, start = random.randint(low, high), random.randint(100, 999)
        return {
            "years": years,
            "p": start,
            "rate": random.randint(1, 9),
            "m": random.randint(0, 20),
        }

    def size(self, inputs: Inputs) -> int:
        return inputs["years"]

    def question(self, inputs: Inputs) -> str:
        return (
            f"A town of {inputs['p']} grows every year by {inputs['rate']} percent, rounded down, "
            f"and by {inputs['m']} who move there. How many live there after {inputs['years']} "
            "years?"
        )

    def tape(self, inputs: Inputs) -> dict[str, Any]:
        return {name: inputs[name] for name in ("p", "rate", "m")}

    def run(self, inputs: Inputs, machine: Machine) -> None:
        years = self.size(inputs)
        for year in range(1, years + 1):
            p, rate = machine.fetch("p", "rate")
            machine.write(f"births{year}", {"g": p * rate // 100}, f"year{year}", block=year)
            p, g, m = machine.fetch("p", "g", "m")
            then = f"births{year + 1}" if year < years else "end"
            machine.write(f"year{year}", {"p": p + g + m}, then, block=year)

    def answer(self, inputs: Inputs, memory: Mapping[str, Any]) -> str:
        return str(memory["p"])
