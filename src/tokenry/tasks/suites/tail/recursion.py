"""Recursion, unrolled: all calls down to the base case, then all returns."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from string import ascii_lowercase
from typing import Any

from tokenry.tasks.suites.tail.algorithm import Algorithm, Inputs, drawn_text, onto_tape
from tokenry.tasks.suites.tail.trace import Machine


class WordFlip(Algorithm):
    """flip(w_1 .. w_n) = flip(w_2 .. w_n) w_1: the words of a sentence in reverse. That words and
    not letters are flipped is reconstructed."""

    name, paradigm = "word_flip", "recursion"
    shortest, longest = 2, 6

    def sample(self, random: Random, low: int, high: int) -> Inputs:
        count = random.randint(low, high)
        words = [drawn_text(random, random.randint(2, 4), ascii_lowercase) for _ in range(count)]
        return {"words": words}

    def size(self, inputs: Inputs) -> int:
        return len(inputs["words"])

    def question(self, inputs: Inputs) -> str:
        return f"Write these words from the last to the first: {' '.join(inputs['words'])}"

    def tape(self, inputs: Inputs) -> dict[str, Any]:
        return onto_tape("w", inputs["words"])

    def run(self, inputs: Inputs, machine: Machine) -> None:
        size = self.size(inputs)
        for k in range(size):
            (word,) = machine.fetch(f"w{k}")
            then = f"flip{k + 1}" if k + 1 < size else f"return{k}"
            machine.write(f"flip{k}", {f"stack{k}": word}, then)
        for k in reversed(range(size)):
            (word,) = machine.fetch(f"stack{k}")
            machine.write(
                f"return{k}", {f"o{size - 1 - k}": word}, f"return{k - 1}" if k else "end"
            )

    def answer(self, inputs: Inputs, memory: Mapping[str, Any]) -> str:
        return " ".join(memory[f"o{k}"] for k in range(self.size(inputs)))


class Derangement(Algorithm):
    """D(n) = (n - 1) (D(n - 1) + D(n - 2)) mod p, D(0) = 1, D(1) = 0: in how many orders none of n
    things keeps its place. The modulus is ours: it keeps a step short at any n."""

    name, paradigm = "derangement", "recursion"
    shortest, longest = 3, 8

    def sample(self, random: Random, low: int, high: int) -> Inputs:
        return {"n": random.randint(low, high), "p": random.randint(11, 997)}

    def size(self, inputs: Inputs) -> int:
        return inputs["n"]

    def question(self, inputs: Inputs) -> str:
        return f"How many derangements do {inputs['n']} things have, modulo {inputs['p']}?"

    def tape(self, inputs: Inputs) -> dict[str, Any]:
        return {"n": inputs["n"], "p": inputs["p"]}

    def run(self, inputs: Inputs, machine: Machine) -> None:
        size = self.size(inputs)
        for k in range(size, 1, -1):
            (n,) = machine.fetch("n")
            machine.write(f"call{k}", {f"k{k}": n, "n": n - 1}, f"call{k - 1}")
        machine.write("call1", {"d0": 1, "d1": 0}, "return2")
        for k in range(2, size + 1):
            one, two, p = machine.fetch(f"d{k - 1}", f"d{k - 2}", "p")
            machine.write(f"return{k}", {"t": (one + two) % p}, f"times{k}", block=f"return{k}")
            n, t, p = machine.fetch(f"k{k}", "t", "p")
            then = f"return{k + 1}" if k < size else "end"
            machine.write(f"times{k}", {f"d{k}": (n - 1) * t % p}, then, block=f"return{k}")

    def answer(self, inputs: Inputs, memory: Mapping[str, Any]) -> str:
        return str(memory[f"d{inputs['n']}"])
