"""Enumeration: every candidate in turn."""

from __future__ import annotations

from collections.abc import Mapping
from math import gcd
from random import Random
from string import ascii_lowercase
from typing import Any

from tokenry.tasks.suites.tail.algorithm import Algorithm, Inputs, drawn_text, onto_tape
from tokenry.tasks.suites.tail.trace import Machine


class LetterCount(Algorithm):
    """How often a letter stands in a word."""

    name, paradigm = "count_letters", "enumeration"
    shortest, longest = 3, 8

    def sample(self, random: Random, low: int, high: int) -> Inputs:
        letters = random.sample(ascii_lowercase, 4)
        word = drawn_text(random, random.randint(low, high), "".join(letters))
        return {"word": word, "letter": letters[0]}

    def size(self, inputs: Inputs) -> int:
        return len(inputs["word"])

    def question(self, inputs: Inputs) -> str:
        return f"How often does {inputs['letter']} stand in {inputs['word']}?"

    def tape(self, inputs: Inputs) -> dict[str, Any]:
        return onto_tape("s", inputs["word"]) | {"c": inputs["letter"], "n": 0}

    def run(self, inputs: Inputs, machine: Machine) -> None:
        size = self.size(inputs)
        for i in range(size):
            letter, wanted, n = machine.fetch(f"s{i}", "c", "n")
            then = f"i{i + 1}" if i + 1 < size else "end"
            machine.write(f"i{i}", {"n": n + 1} if letter == wanted else {}, then)

    def answer(self, inputs: Inputs, memory: Mapping[str, Any]) -> str:
        return str(memory["n"])


class Diophantine(Algorithm):
    """The smallest x >= 0 with a x + b y = c, y >= 0: x = 0, 1, ... size - 1 are tried."""

    name, paradigm = "diophantine", "enumeration"
    shortest, longest = 2, 5

    def sample(self, random: Random, low: int, high: int) -> Inputs:
        x, a, b = random.randint(low, high) - 1, 1, 1
        # a and b share no factor and b > x: then no smaller x leaves a multiple of b
        while gcd(a, b) > 1 or a == b:
            a, b = random.randint(2, 30), x + random.randint(2, 30)
        return {"a": a, "b": b, "c": a * x + b * random.randint(0, 9)}

    def size(self, inputs: Inputs) -> int:
        a, b, c = inputs["a"], inputs["b"], inputs["c"]
        return 1 + c * pow(a, -1, b) % b

    def question(self, inputs: Inputs) -> str:
        return (
            "Which whole numbers x and y, none below 0 and x the smallest possible, fulfil "
            f"{inputs['a']} x + {inputs['b']} y = {inputs['c']}?"
        )

    def tape(self, inputs: Inputs) -> dict[str, Any]:
        return {"a": inputs["a"], "b": inputs["b"], "t": inputs["c"], "x": 0}

    def run(self, inputs: Inputs, machine: Machine) -> None:
        for trial in range(self.size(inputs)):
            t, b = machine.fetch("t", "b")
            then = f"less{trial}" if t % b else "solve"
            machine.write(f"x{trial}", {"r": t % b}, then, block=trial)
            if t % b:
                t, a, x = machine.fetch("t", "a", "x")
                machine.write(f"less{trial}", {"t": t - a, "x": x + 1}, f"x{trial + 1}", trial)
        t, b = machine.fetch("t", "b")
        machine.write("solve", {"y": t // b}, "end")

    def answer(self, inputs: Inputs, memory: Mapping[str, Any]) -> str:
        return f"x={memory['x']} y={memory['y']}"


class PrimeSearch(Algorithm):
    """The primes of a range: each number is divided by 2, 3, ... until d d > v or v mod d = 0."""

    name, paradigm = "prime_search", "enumeration"
    shortest, longest = 3, 5

    def sample(self, random: Random, low: int, high: int) -> Inputs:
        start = random.randint(2, 200)
        return {"start": start, "end": start + random.randint(low, high) - 1}

    def size(self, inputs: Inputs) -> int:
        return inputs["end"] - inputs["start"] + 1

    def question(self, inputs: Inputs) -> str:
        return f"Which numbers from {inputs['start']} to {inputs['end']} are prime?"

    def tape(self, inputs: Inputs) -> dict[str, Any]:
        return {"v": inputs["start"]}

    def run(self, inputs: Inputs, machine: Machine) -> None:
        for number in range(inputs["start"], inputs["end"] + 1):
            machine.write(f"v{number}", {"d": 2}, f"try{number},2", block=number)
            verdict = None
            while verdict is None:
                v, d = machine.fetch("v", "d")
                verdict = 1 if d * d > v else 0 if v % d == 0 else None
                values = {"d": d + 1} if verdict is None else {f"f{v}": verdict, "v": v + 1}
                then = f"v{v + 1}" if v < inputs["end"] else "end"
                then = f"try{v},{d + 1}" if verdict is None else then
                machine.write(f"try{number},{d}", values, then, block=number)

    def answer(self, inputs: Inputs, memory: Mapping[str, Any]) -> str:
        numbers = range(inputs["start"], memory["v"])
        return " ".join(str(v) for v in numbers if memory[f"f{v}"]) or "none"
