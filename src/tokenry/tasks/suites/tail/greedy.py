"""Greedy: the nearest node next, the least loaded machine next."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from random import Random
from typing import Any

from tokenry.tasks.suites.tail.algorithm import ABSENT, Algorithm, Inputs, onto_tape
from tokenry.tasks.suites.tail.trace import Machine


class Dijkstra(Algorithm):
    """The shortest distance from node 0 to the last one: n times, scan for the nearest node that is
    not done, close it, and relax its edges."""

    name, paradigm = "dijkstra", "greedy"
    shortest, longest = 3, 4

    def sample(self, random: Random, low: int, high: int) -> Inputs:
        n = random.randint(low, high)
        order = random.sample(range(n), n)
        pairs = {tuple(sorted(pair)) for pair in pairwise(order)}  # connected
        pairs |= {tuple(sorted(random.sample(range(n), 2))) for _ in range(n)}
        return {"n": n, "edges": [[u, v, random.randint(1, 9)] for u, v in sorted(pairs)]}

    def size(self, inputs: Inputs) -> int:
        return inputs["n"]

    def question(self, inputs: Inputs) -> str:
        edges = ", ".join(f"{u} to {v}: {length}" for u, v, length in inputs["edges"])
        return (
            f"Roads that lead both ways have these lengths: {edges}. How long is the shortest way "
            f"from 0 to {inputs['n'] - 1}?"
        )

    def tape(self, inputs: Inputs) -> dict[str, Any]:
        nodes = range(inputs["n"])
        memory = onto_tape("d", [ABSENT if v else 0 for v in nodes])
        memory |= onto_tape("f", [0 for _ in nodes])
        for u, v, length in inputs["edges"]:
            memory |= {f"e{u},{v}": length, f"e{v},{u}": length}
        return memory

    def run(self, inputs: Inputs, machine: Machine) -> None:
        n = self.size(inputs)
        for turn in range(n):
            machine.write(f"n{turn}", {"b": ABSENT, "m": ABSENT}, f"n{turn},0", block=turn)
            for v in range(n):
                done, d, m = machine.fetch(f"f{v}", f"d{v}", "m")
                nearer = not done and d != ABSENT and (m == ABSENT or d < m)
                then = f"n{turn},{v + 1}" if v + 1 < n else f"close{turn}"
                machine.write(f"n{turn},{v}", {"b": v, "m": d} if nearer else {}, then, turn)
            (u,) = machine.fetch("b")
            roads = [v for v in range(n) if f"e{u},{v}" in machine.memory]
            ways = [*(f"r{u},{v}" for v in roads), f"n{turn + 1}" if turn + 1 < n else "end"]
            machine.write(f"close{turn}", {f"f{u}": 1}, ways[0], block=turn)
            for v, then in zip(roads, ways[1:], strict=True):
                near, length, far = machine.fetch(f"d{u}", f"e{u},{v}", f"d{v}")
                shorter = far == ABSENT or near + length < far
                values = {f"d{v}": near + length} if shorter else {}
                machine.write(f"r{u},{v}", values, then, block=turn)

    def answer(self, inputs: Inputs, memory: Mapping[str, Any]) -> str:
        return str(memory[f"d{inputs['n'] - 1}"])


class Schedule(Algorithm):
    """Each job in turn goes to the machine with the least load, the first of equals; how much has
    the fullest in the end? That jobs come in their given order is reconstructed."""

    name, paradigm = "schedule", "greedy"
    shortest, longest = 2, 4

    def sample(self, random: Random, low: int, high: int) -> Inputs:
        jobs = [random.randint(1, 20) for _ in range(random.randint(low, high))]
        return {"jobs": jobs, "machines": random.randint(2, 3)}

    def size(self, inputs: Inputs) -> int:
        return len(inputs["jobs"])

    def question(self, inputs: Inputs) -> str:
        return (
            f"{inputs['machines']} machines get jobs of {' '.join(map(str, inputs['jobs']))} hours "
            "in this order, each job on the machine with the least load, the first one if several "
            "have it. How many hours does the fullest machine get?"
        )

    def tape(self, inputs: Inputs) -> dict[str, Any]:
        return (
            onto_tape("t", inputs["jobs"]) | onto_tape("l", [0] * inputs["machines"]) | {"top": 0}
        )

    def run(self, inputs: Inputs, machine: Machine) -> None:
        size, machines = self.size(inputs), inputs["machines"]
        for k in range(size):
            (load,) = machine.fetch("l0")
            machine.write(f"j{k},0", {"b": 0, "m": load}, f"j{k},1", block=k)
            for i in range(1, machines):
                load, least = machine.fetch(f"l{i}", "m")
                then = f"j{k},{i + 1}" if i + 1 < machines else f"put{k}"
                machine.write(f"j{k},{i}", {"b": i, "m": load} if load < least else {}, then, k)
            (b,) = machine.fetch("b")
            load, job = machine.fetch(f"l{b}", f"t{k}")
            then = f"j{k + 1},0" if k + 1 < size else "max0"
            machine.write(f"put{k}", {f"l{b}": load + job}, then, block=k)
        for i in range(machines):
            load, top = machine.fetch(f"l{i}", "top")
            then = f"max{i + 1}" if i + 1 < machines else "end"
            machine.write(f"max{i}", {"top": max(load, top)}, then, block="max")

    def answer(self, inputs: Inputs, memory: Mapping[str, Any]) -> str:
        return str(memory["top"])
