"""Simulation, of work on rows: a substring copied, two numbers compared, bubble sort."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from string import ascii_lowercase
from typing import Any

from tokenry.tasks.suites.tail.algorithm import (
    Algorithm,
    Inputs,
    digits_of,
    drawn_number,
    drawn_text,
    onto_tape,
    value_of,
)
from tokenry.tasks.suites.tail.trace import Machine


class Substring(Algorithm):
    """The letters of a text from one position (of 1, 2, ..) to another. What is asked is ours."""

    name, paradigm = "substring", "simulation"
    shortest, longest = 3, 8

    def sample(self, random: Random, low: int, high: int) -> Inputs:
        size = random.randint(low, high)
        text = drawn_text(random, size + random.randint(1, size), ascii_lowercase)
        start = random.randint(1, len(text) - size + 1)
        return {"text": text, "start": start, "end": start + size - 1}

    def size(self, inputs: Inputs) -> int:
        return inputs["end"] - inputs["start"] + 1

    def question(self, inputs: Inputs) -> str:
        return f"What are the letters {inputs['start']} to {inputs['end']} of {inputs['text']}?"

    def tape(self, inputs: Inputs) -> dict[str, Any]:
        return onto_tape("s", inputs["text"], 1)

    def run(self, inputs: Inputs, machine: Machine) -> None:
        for k in range(inputs["start"], inputs["end"] + 1):
            (letter,) = machine.fetch(f"s{k}")
            then = f"k{k + 1}" if k < inputs["end"] else "end"
            machine.write(f"k{k}", {f"o{k - inputs['start']}": letter}, then)

    def answer(self, inputs: Inputs, memory: Mapping[str, Any]) -> str:
        return "".join(memory[f"o{k}"] for k in range(self.size(inputs)))


class Comparison(Algorithm):
    """a < b, a = b or a > b, from the right: the highest place that differs decides."""

    name, paradigm = "compare", "simulation"
    shortest, longest = 3, 8

    def sample(self, random: Random, low: int, high: int) -> Inputs:
        size = random.randint(low, high)
        a = drawn_number(random, size)
        kind = random.choice(("other", "changed", "changed", "equal"))
        place = random.randrange(size)
        changed = a[:place] + str(random.randint(1, 9)) + a[place + 1 :]
        other = drawn_number(random, random.randint(1, size))
        pair = [a, {"other": other, "changed": changed, "equal": a}[kind]]
        random.shuffle(pair)
        return {"a": pair[0], "b": pair[1]}

    def size(self, inputs: Inputs) -> int:
        return max(len(inputs["a"]), len(inputs["b"]))

    def question(self, inputs: Inputs) -> str:
        return f"Which sign stands between {inputs['a']} and {inputs['b']}: <, = or >?"

    def tape(self, inputs: Inputs) -> dict[str, Any]:
        places = self.size(inputs)
        numbers = digits_of("a", inputs["a"], places) | digits_of("b", inputs["b"], places)
        return numbers | {"o": "eq"}

    def run(self, inputs: Inputs, machine: Machine) -> None:
        size = self.size(inputs)
        for i in range(size):
            a, b, o = machine.fetch(f"a{i}", f"b{i}", "o")
            difference = value_of(a) - value_of(b)
            o = "lt" if difference < 0 else "gt" if difference > 0 else o
            machine.write(f"i{i}", {"o": o}, f"i{i + 1}" if i + 1 < size else "end")

    def answer(self, inputs: Inputs, memory: Mapping[str, Any]) -> str:
        return {"lt": "<", "eq": "=", "gt": ">"}[memory["o"]]


class BubbleSort(Algorithm):
    """n (n - 1) / 2 comparisons of neighbours, the smaller one to the left."""

    name, paradigm = "bubble_sort", "simulation"
    shortest, longest = 3, 4

    def sample(self, random: Random, low: int, high: int) -> Inputs:
        return {"numbers": [random.randint(0, 99) for _ in range(random.randint(low, high))]}

    def size(self, inputs: Inputs) -> int:
        return len(inputs["numbers"])

    def question(self, inputs: Inputs) -> str:
        return f"Sort {' '.join(map(str, inputs['numbers']))} from the smallest to the largest."

    def tape(self, inputs: Inputs) -> dict[str, Any]:
        return onto_tape("x", inputs["numbers"])

    def run(self, inputs: Inputs, machine: Machine) -> None:
        pairs = [(p, j) for p in range(self.size(inputs)) for j in range(self.size(inputs) - 1 - p)]
        for (p, j), after in zip(pairs, [*pairs[1:], None], strict=True):
            left, right = machine.fetch(f"x{j}", f"x{j + 1}")
            values = {f"x{j}": min(left, right), f"x{j + 1}": max(left, right)}
            then = f"p{after[0]},{after[1]}" if after else "end"
            machine.write(f"p{p},{j}", values, then, block=p)

    def answer(self, inputs: Inputs, memory: Mapping[str, Any]) -> str:
        return " ".join(str(memory[f"x{j}"]) for j in range(self.size(inputs)))
