"""TAIL: problems whose answers are long but whose steps are short, with the trace of every step.

    prompt     an instance, from a tier of sizes: S, M (beyond S) or L (beyond M, up to 6 times S)
    solution   the trace of the program that solves it, line by line, then "= answer"

A model trained on S by demonstrations is put to M and L. What counts is the last line. The trace
is made of three modules, each of which can be left out: linear transition, atomic state, memory
fetcher (`trace`).

Source: The Imitation Game: Turing Machine Imitator is Length Generalizable Reasoner (arXiv
2507.13332). Its 18 problems in 8 classes are rebuilt from their names: their wording, sizes and
lines are reconstructed, and of a few the class.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import ClassVar, Literal, get_args

from tokenry.core.checks import one_of
from tokenry.tasks.distinct import distinct_items
from tokenry.tasks.suites.tail.algorithm import Algorithm, Inputs, tier_sizes
from tokenry.tasks.suites.tail.backtracking import PalindromePermutations
from tokenry.tasks.suites.tail.divide_and_conquer import BinarySearch
from tokenry.tasks.suites.tail.dynamic_texts import CommonSubsequence, Levenshtein
from tokenry.tasks.suites.tail.dynamic_things import Knapsack
from tokenry.tasks.suites.tail.enumeration import Diophantine, LetterCount, PrimeSearch
from tokenry.tasks.suites.tail.greedy import Dijkstra, Schedule
from tokenry.tasks.suites.tail.iteration import PopulationGrowth
from tokenry.tasks.suites.tail.recursion import Derangement, WordFlip
from tokenry.tasks.suites.tail.simulation_numbers import Addition, Division
from tokenry.tasks.suites.tail.simulation_rows import BubbleSort, Comparison, Substring
from tokenry.tasks.suites.tail.trace import Machine, Style, lines
from tokenry.tasks.task import Answer, Generate, Item, Task, task

Tier = Literal["S", "M", "L"]
CLASSES: tuple[type[Algorithm], ...] = (
    *(Addition, Division, Substring, Comparison, BubbleSort),
    *(WordFlip, Derangement, PopulationGrowth, Dijkstra, Schedule),
    *(LetterCount, Diophantine, PrimeSearch, BinarySearch),
    *(CommonSubsequence, Knapsack, Levenshtein, PalindromePermutations),
)
ALGORITHMS: dict[str, Algorithm] = {kind.name: kind() for kind in CLASSES}
"""Name -> problem."""


def _examples() -> list[TailTraces]:
    return [TailTraces(name) for name in ALGORITHMS] + [
        TailTraces("addition", "M", linear=False),
        TailTraces("lcs", "M", atomic=False, style="styled"),
        TailTraces("compare", "L", fetch=False),
    ]


@task("tail", paper=36, examples=_examples)
@dataclass(frozen=True)
class TailTraces(Task):
    """Asks for the trace of a problem's solution.

    Args:
        problem: one of `ALGORITHMS`.
        tier: "S" (default), "M" or "L".
        linear: the three modules of a trace; default True.
        atomic: see `linear`.
        fetch: see `linear`.
        style: of its lines: "core" (default), symbols alone, or "styled", in words.

    Raises:
        InputError: a problem, tier or style that does not exist.
    """

    problem: str
    tier: Tier = "S"
    linear: bool = True
    atomic: bool = True
    fetch: bool = True
    style: Style = "core"

    primary: ClassVar[str] = "right"

    def __post_init__(self) -> None:
        one_of("TailTraces.problem", self.problem, ALGORITHMS)
        one_of("TailTraces.tier", self.tier, get_args(Tier))
        one_of("TailTraces.style", self.style, get_args(Style))

    def items(self, count: int, seed: int) -> list[Item]:
        """Different instances; `about` has the inputs and the answer."""
        return distinct_items(self._item, count, seed)

    def score(self, item: Item, answer: Answer) -> dict[str, float]:
        """right: the last line is "= " and the answer, exactly. trace: the share of lines, of the
        longer text, before the first that differs from the solution."""
        given, wanted = str(answer).strip().split("\n"), self.trace(item.about["inputs"])
        differs = [n for n, pair in enumerate(zip(given, wanted, strict=False)) if len({*pair}) > 1]
        same = differs[0] if differs else min(len(given), len(wanted))
        return {
            "right": float(given[-1].rstrip() == wanted[-1]),
            "trace": same / max(len(given), len(wanted)),
        }

    def trace(self, inputs: Inputs) -> list[str]:
        """The lines of an instance's solution, the last one with the answer."""
        algorithm = ALGORITHMS[self.problem]
        machine = Machine(algorithm.tape(inputs))
        algorithm.run(inputs, machine)
        steps = lines(machine.steps, self.linear, self.atomic, self.fetch, self.style)
        return [*steps, f"= {algorithm.answer(inputs, machine.memory)}"]

    def _item(self, random: Random) -> Item:
        algorithm = ALGORITHMS[self.problem]
        inputs = algorithm.sample(random, *tier_sizes(algorithm)[self.tier])
        solution = "\n".join(self.trace(inputs))
        prompt = (
            f"{algorithm.question(inputs)} Write every step, and in the last line = and the "
            "answer.\n"
        )
        # a token is a character or more: no solution is cut
        return Item(Generate(prompt, len(solution) + 16), solution, {"inputs": inputs})
