"""Backtracking: choose, go deeper, take back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import factorial, prod
from random import Random
from string import ascii_lowercase
from typing import Any

from tokenry.tasks.suites.tail.algorithm import Algorithm, Inputs, drawn_text
from tokenry.tasks.suites.tail.trace import Machine

DEEPEST = 7


class PalindromePermutations(Algorithm):
    """All palindromes that use every one of some letters, in the order of the alphabet; the size is
    how many there are. Half of the letters are put in order, the other half follows. That this is
    the paper's backtracking problem is reconstructed."""

    name, paradigm = "palindrome_permutations", "backtracking"
    shortest, longest = 2, 6

    def sample(self, random: Random, low: int, high: int) -> Inputs:
        half = ""
        while not low <= _orders(half) <= high:
            letters = random.sample(ascii_lowercase, random.randint(2, 4))
            half = drawn_text(random, random.randint(2, DEEPEST), "".join(letters))
        middle = random.choice(["", random.choice(ascii_lowercase)])
        return {
            "letters": "".join(random.sample(half + half + middle, 2 * len(half) + len(middle)))
        }

    def size(self, inputs: Inputs) -> int:
        return _orders(_half(inputs))

    def question(self, inputs: Inputs) -> str:
        return (
            f"Which palindromes can be made of all the letters {' '.join(inputs['letters'])}? "
            "Write them in the order of the alphabet."
        )

    def tape(self, inputs: Inputs) -> dict[str, Any]:
        counts = sorted(Counter(_half(inputs)).items())
        return {f"c{letter}": times for letter, times in counts} | {"n": 0}

    def run(self, inputs: Inputs, machine: Machine) -> None:
        half = _half(inputs)
        letters = sorted(set(half))

        def search(path: str) -> None:
            depth = len(path)
            if depth == len(half):
                chosen = machine.fetch(*(f"p{d}" for d in range(depth)))
                (n,) = machine.fetch("n")
                machine.write(f"full{path}", {f"h{n}": "".join(chosen), "n": n + 1}, "back", n)
                return
            for letter in letters:
                (left,) = machine.fetch(f"c{letter}")
                block = machine.memory["n"]  # a block ends with each palindrome
                if not left:
                    machine.write(f"at{path}+{letter}", {}, "skip", block)
                    continue
                values = {f"c{letter}": left - 1, f"p{depth}": letter}
                machine.write(f"at{path}+{letter}", values, f"at{path}{letter}", block)
                search(path + letter)
                (left,) = machine.fetch(f"c{letter}")
                block = machine.memory["n"]
                machine.write(f"undo{path}{letter}", {f"c{letter}": left + 1}, f"at{path}", block)

        search("")

    def answer(self, inputs: Inputs, memory: Mapping[str, Any]) -> str:
        middle = "".join(x for x, times in Counter(inputs["letters"]).items() if times % 2)
        halves = [memory[f"h{n}"] for n in range(memory["n"])]
        return " ".join(half + middle + half[::-1] for half in halves)


def _half(inputs: Inputs) -> str:
    """Every letter half as often, in the order of the alphabet."""
    counts = sorted(Counter(inputs["letters"]).items())
    return "".join(letter * (times // 2) for letter, times in counts)


def _orders(half: str) -> int:
    """In how many different orders letters can stand."""
    return factorial(len(half)) // prod(map(factorial, Counter(half).values()))
