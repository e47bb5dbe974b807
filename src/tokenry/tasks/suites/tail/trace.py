"""Traces: what a program did, one line for each step, as text that can be replayed.

    step  =  label: address=value ... -> address=value ... ; control
                    what it fetches      what it writes      where it goes next

    linear  (Linear Transition)  off: only the first and the last block of steps, "..." between
    atomic  (Atomic State)       off: the steps of a block are one line, its last writes
    fetch   (Memory Fetcher)     off: lines without what they fetch

A program works on a `Machine`, whose memory is its only store: it fetches what it needs, and
writes, so that no line can use a value that an earlier one, or the input, has not written.

Source: The Imitation Game: Turing Machine Imitator is Length Generalizable Reasoner (arXiv
2507.13332). The form of the lines is reconstructed, and what a trace without a module looks like.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal

Style = Literal["core", "styled"]
SKIPPED = "..."


@dataclass(frozen=True)
class Step:
    """fetch, write: address -> value. control: what comes next. block: steps of one iteration."""

    label: str
    fetch: Mapping[str, Any]
    write: Mapping[str, Any]
    control: str
    block: str


@dataclass
class Machine:
    """memory: address -> value, first the input. A step begins with `fetch` and ends with `write`;
    addresses and values are written without white space."""

    memory: dict[str, Any]
    steps: list[Step] = field(default_factory=list)
    fetched: dict[str, Any] = field(default_factory=dict)

    def fetch(self, *addresses: str) -> list[Any]:
        """The values at the addresses, which the step that is under way shows."""
        self.fetched |= {address: self.memory[address] for address in addresses}
        return [self.memory[address] for address in addresses]

    def write(self, label: str, values: Mapping[str, Any], then: str, block: object = None) -> None:
        """End a step: what it writes, and where it goes. block: the label, if None."""
        of = label if block is None else str(block)
        self.steps.append(Step(label, self.fetched, dict(values), then, of))
        self.memory |= values
        self.fetched = {}


def lines(
    steps: Sequence[Step],
    linear: bool = True,
    atomic: bool = True,
    fetch: bool = True,
    style: Style = "core",
) -> list[str]:
    """The text of a trace, with some of the three modules switched off; see the module."""
    blocks = [list(block) for _, block in groupby(steps, key=lambda step: step.block)]
    shown: list[list[Step]] = blocks
    if not linear:
        # where there is nothing between the first and the last block, blocks are steps
        shown = blocks if len(blocks) > 2 else [[step] for step in steps]
        shown = [shown[0], [], shown[-1]] if len(shown) > 2 else shown
    if not atomic:
        shown = [[merged(block)] if block else [] for block in shown]
    return [
        line
        for block in shown
        for line in ([written(step, fetch, style) for step in block] or [SKIPPED])
    ]


def merged(block: Sequence[Step]) -> Step:
    """A block as one step: fetches what it has not written itself, and leaves the last writes."""
    fetch: dict[str, Any] = {}
    write: dict[str, Any] = {}
    for step in block:
        fetch |= {a: v for a, v in step.fetch.items() if a not in write and a not in fetch}
        write |= step.write
    return Step(block[0].label, fetch, write, block[-1].control, block[0].block)


def written(step: Step, fetch: bool = True, style: Style = "core") -> str:
    """A step as a line."""
    reads = _pairs(step.fetch) if fetch else ""
    writes = _pairs(step.write)
    if style == "core":
        return " ".join(f"{step.label}: {reads} -> {writes} ; {step.control}".split())
    parts = [f"read {reads}"] * bool(reads) + [f"write {writes}"] * bool(writes)
    return f"At {step.label}, {''.join(part + ', ' for part in parts)}then {step.control}."


def _pairs(values: Mapping[str, Any]) -> str:
    return " ".join(f"{address}={value}" for address, value in values.items())
