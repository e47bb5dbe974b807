"""Dynamic programming over two texts: a table filled cell by cell, a row being a block."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any

from tokenry.tasks.suites.tail.algorithm import Algorithm, Inputs, drawn_text, onto_tape
from tokenry.tasks.suites.tail.trace import Machine


class _Texts(Algorithm):
    """Two texts a and b, and a table t of |a| x |b| cells inside its border."""

    paradigm = "dynamic programming"
    shortest, longest = 2, 4

    def sample(self, random: Random, low: int, high: int) -> Inputs:
        size = random.randint(low, high)
        lengths = [size, random.randint(2, size)]
        random.shuffle(lengths)
        a, b = (drawn_text(random, length, "abcd") for length in lengths)
        return {"a": a, "b": b}

    def size(self, inputs: Inputs) -> int:
        return max(len(inputs["a"]), len(inputs["b"]))

    def border(self, place: int) -> int:
        raise NotImplementedError

    def cell(self, same: bool, corner: int, above: int, left: int) -> int:
        raise NotImplementedError

    def tape(self, inputs: Inputs) -> dict[str, Any]:
        a, b = inputs["a"], inputs["b"]
        memory = onto_tape("a", a, 1) | onto_tape("b", b, 1)
        memory |= {f"t{i},0": self.border(i) for i in range(len(a) + 1)}
        return memory | {f"t0,{j}": self.border(j) for j in range(len(b) + 1)}

    def run(self, inputs: Inputs, machine: Machine) -> None:
        rows, columns = len(inputs["a"]), len(inputs["b"])
        cells = [(i, j) for i in range(1, rows + 1) for j in range(1, columns + 1)]
        for (i, j), after in zip(cells, [*cells[1:], None], strict=True):
            a, b, corner, above, left = machine.fetch(
                f"a{i}", f"b{j}", f"t{i - 1},{j - 1}", f"t{i - 1},{j}", f"t{i},{j - 1}"
            )
            value = self.cell(a == b, corner, above, left)
            then = f"c{after[0]},{after[1]}" if after else "end"
            machine.write(f"c{i},{j}", {f"t{i},{j}": value}, then, block=i)

    def answer(self, inputs: Inputs, memory: Mapping[str, Any]) -> str:
        return str(memory[f"t{len(inputs['a'])},{len(inputs['b'])}"])


class CommonSubsequence(_Texts):
    """t_ij = t_(i-1)(j-1) + 1 where a_i = b_j, else max(t_(i-1)j, t_i(j-1)); borders are 0."""

    name = "lcs"

    def question(self, inputs: Inputs) -> str:
        return f"How long is the longest common subsequence of {inputs['a']} and {inputs['b']}?"

    def border(self, place: int) -> int:
        return 0

    def cell(self, same: bool, corner: int, above: int, left: int) -> int:
        return corner + 1 if same else max(above, left)


class Levenshtein(_Texts):
    """t_ij = min(t_(i-1)(j-1) + [a_i != b_j], t_(i-1)j + 1, t_i(j-1) + 1); t_i0 = i, t_0j = j."""

    name = "levenshtein"

    def question(self, inputs: Inputs) -> str:
        return f"What is the Levenshtein distance of {inputs['a']} and {inputs['b']}?"

    def border(self, place: int) -> int:
        return place

    def cell(self, same: bool, corner: int, above: int, left: int) -> int:
        return min(corner + (not same), above + 1, left + 1)
