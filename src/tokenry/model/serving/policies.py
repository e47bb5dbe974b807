"""Which machine reads a request's prompt, and which writes its tokens.

Source: the cluster scheduler of "Splitwise" (arXiv 2311.18677): join the shortest queue, with a
pool of machines that are lent from one phase to the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from tokenry.core.errors import InputError

if TYPE_CHECKING:
    from tokenry.model.serving.simulation import Instance

Role = Literal["both", "prompt", "token", "mixed"]


class Policy(Protocol):
    """Sends a request to (its prompt machine, its token machine)."""

    def route(
        self, machines: Sequence[Instance], prompt: int, output: int
    ) -> tuple[Instance, Instance]: ...


@dataclass(frozen=True)
class SharedPool:
    """One pool: both phases on the machine with the fewest pending tokens."""

    def route(
        self, machines: Sequence[Instance], prompt: int, output: int
    ) -> tuple[Instance, Instance]:
        chosen = shortest(of_role(machines, "both"), lambda machine: machine.pending_tokens)
        return chosen, chosen


@dataclass(frozen=True)
class SplitPools:
    """Two pools: the prompt machine with the fewest pending prompt tokens, the token machine with
    the least memory spoken for."""

    def route(
        self, machines: Sequence[Instance], prompt: int, output: int
    ) -> tuple[Instance, Instance]:
        return (
            shortest(of_role(machines, "prompt"), lambda machine: machine.pending_prompt),
            shortest(of_role(machines, "token"), lambda machine: machine.scheduled),
        )


@dataclass(frozen=True)
class MixedPools:
    """Two pools that lend machines to each other while one is full.

    A prompt machine is full with more than `prompt_limit` pending prompt tokens, a token machine
    when the request would not fit its memory. Then a machine of the mixed pool is taken that has
    room, else one is borrowed from the other pool; what is borrowed does both phases, and returns
    when it has no foreign work left. Where nothing has room, the machine with the fewest pending
    tokens does both phases.
    """

    prompt_limit: int = 8192

    def route(
        self, machines: Sequence[Instance], prompt: int, output: int
    ) -> tuple[Instance, Instance]:
        reader = first_open(
            machines,
            ("prompt", "mixed", "token"),
            lambda machine: machine.pending_prompt,
            lambda machine: machine.pending_prompt <= self.prompt_limit,
        )
        writer = first_open(
            machines,
            ("token", "mixed", "prompt"),
            lambda machine: machine.scheduled,
            lambda machine: machine.scheduled + prompt + output <= machine.room,
        )
        if reader is None or writer is None:
            reader = writer = shortest(machines, lambda machine: machine.pending_tokens)
        if reader.role == "token" or reader is writer:
            reader.role = "mixed"
        if writer.role == "prompt":
            writer.role = "mixed"
        return reader, writer


def first_open(
    machines: Sequence[Instance],
    roles: tuple[Role, ...],
    load: Callable[[Instance], float],
    is_open: Callable[[Instance], bool],
) -> Instance | None:
    """The least loaded machine of the first role where that one is open; None if none is."""
    for role in roles:
        pool = [machine for machine in machines if machine.role == role]
        if pool and is_open(best := shortest(pool, load)):
            return best
    return None


def shortest(machines: Sequence[Instance], load: Callable[[Instance], float]) -> Instance:
    """The machine with the smallest load; of equal ones the first."""
    return min(machines, key=lambda machine: (load(machine), machine.number))


def of_role(machines: Sequence[Instance], role: Role) -> list[Instance]:
    pool = [machine for machine in machines if machine.role == role]
    if not pool:
        raise InputError(f"this policy needs machines whose role is {role!r}, the cluster has none")
    return pool
