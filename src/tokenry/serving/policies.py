"""Which machine reads a request's prompt, and which writes its tokens.

Source: the cluster scheduler of "Splitwise" (arXiv 2311.18677): join the shortest queue, with a
pool of machines that are lent from one phase to the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from tokenry.core.checks import within
from tokenry.core.errors import InputError
from tokenry.serving.instances import Instance, Role


class Policy(Protocol):
    """Sends a request to (its prompt machine, its token machine).

    A machine that only reads a prompt holds its tokens; one that writes holds prompt and answer.
    A policy chooses among machines whose memory is large enough for that.
    """

    def route(
        self, machines: Sequence[Instance], prompt: int, output: int
    ) -> tuple[Instance, Instance]: ...


@dataclass(frozen=True)
class SharedPool:
    """One pool: both phases on the machine with the fewest pending tokens."""

    def route(
        self, machines: Sequence[Instance], prompt: int, output: int
    ) -> tuple[Instance, Instance]:
        able = of_role(machines, "both", prompt + output)
        chosen = shortest(able, lambda machine: machine.pending_tokens)
        return chosen, chosen


@dataclass(frozen=True)
class SplitPools:
    """Two pools: the prompt machine with the fewest pending prompt tokens, the token machine with
    the least memory spoken for."""

    def route(
        self, machines: Sequence[Instance], prompt: int, output: int
    ) -> tuple[Instance, Instance]:
        needed = prompt + output if output > 1 else 0  # the first token comes with the prompt
        return (
            shortest(of_role(machines, "prompt", prompt), lambda machine: machine.pending_prompt),
            shortest(of_role(machines, "token", needed), lambda machine: machine.scheduled),
        )


@dataclass(frozen=True)
class MixedPools:
    """Two pools that lend machines to each other while one is full.

    A prompt machine is full with more than `prompt_limit` (>= 0) pending prompt tokens, a token
    machine when the request would not fit its memory. Then a machine of the mixed pool is taken
    that has capacity, else one is borrowed from the other pool; what is borrowed does both phases,
    and returns when it has no foreign work left. Where nothing has capacity, the machine with the
    fewest pending tokens does both phases.
    """

    prompt_limit: int = 8192

    def __post_init__(self) -> None:
        within(self, "[0, inf)", "prompt_limit", integer=True)

    def route(
        self, machines: Sequence[Instance], prompt: int, output: int
    ) -> tuple[Instance, Instance]:
        prompt_machine = first_open(
            machines,
            ("prompt", "mixed", "token"),
            lambda machine: machine.pending_prompt,
            lambda machine: machine.pending_prompt <= self.prompt_limit,
            prompt,
        )
        token_machine = first_open(
            machines,
            ("token", "mixed", "prompt"),
            lambda machine: machine.scheduled,
            lambda machine: machine.scheduled + prompt + output <= machine.capacity,
            prompt + output,
        )
        if prompt_machine is None or token_machine is None:
            able = with_capacity(machines, prompt + output)
            prompt_machine = token_machine = shortest(able, lambda machine: machine.pending_tokens)
        if prompt_machine.role == "token" or prompt_machine is token_machine:
            prompt_machine.role = "mixed"
        if token_machine.role == "prompt":
            token_machine.role = "mixed"
        return prompt_machine, token_machine


def first_open(
    machines: Sequence[Instance],
    roles: tuple[Role, ...],
    load: Callable[[Instance], float],
    is_open: Callable[[Instance], bool],
    tokens: int,
) -> Instance | None:
    """The least loaded machine of the first role where that one is open; None if none is.

    tokens: only machines whose memory can hold so many count.
    """
    for role in roles:
        pool = [m for m in machines if m.role == role and m.capacity >= tokens]
        if pool and is_open(best := shortest(pool, load)):
            return best
    return None


def shortest(machines: Sequence[Instance], load: Callable[[Instance], float]) -> Instance:
    """The machine with the smallest load; of equal ones the first."""
    return min(machines, key=lambda machine: (load(machine), machine.number))


def of_role(machines: Sequence[Instance], role: Role, tokens: int) -> list[Instance]:
    pool = [machine for machine in machines if machine.role == role]
    if not pool:
        raise InputError(f"this policy needs machines whose role is {role!r}, the cluster has none")
    return with_capacity(pool, tokens)


def with_capacity(machines: Sequence[Instance], tokens: int) -> list[Instance]:
    """The machines whose memory holds so many tokens. Raises InputError where none does."""
    able = [machine for machine in machines if machine.capacity >= tokens]
    if not able:
        raise InputError(
            f"a request of {tokens} tokens does not fit a machine whose memory holds "
            f"{max(machine.capacity for machine in machines):.0f}: take machines with more memory "
            "or leave the request out"
        )
    return able
