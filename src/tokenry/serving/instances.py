"""Machines of a cluster: pools of equal ones, and one of them at work."""

from __future__ import annotations

import math
from collections import defaultdict, deque
from dataclasses import dataclass
from typing import Literal, get_args

from tokenry.core.checks import one_of, within
from tokenry.serving.phases import PhaseModel

Role = Literal["both", "prompt", "token", "mixed"]


@dataclass(frozen=True)
class Pool:
    """`count` (>= 0) equal machines. role: what they are for; SharedPool needs "both", the others
    "prompt" and "token". capacity: cached tokens that fit one machine, > 0; inf by default."""

    phases: PhaseModel
    count: int
    role: Role = "both"
    capacity: float = math.inf

    def __post_init__(self) -> None:
        within(self, "[0, inf)", "count", integer=True)
        within(self, "(0, inf]", "capacity")
        one_of("Pool.role", self.role, get_args(Role))


class Instance:
    """One machine at work."""

    def __init__(self, number: int, pool: Pool):
        self.number, self.phases, self.capacity = number, pool.phases, pool.capacity
        self.home: Role = pool.role
        self.role: Role = pool.role
        self.queue: deque[int] = deque()  # prompts to read
        self.waiting: deque[int] = deque()  # caches that wait to join the batch
        self.pending_prompt = 0  # prompt tokens queued or being read
        self.pending_output = 0  # tokens still to be written by requests sent here
        self.scheduled = 0  # tokens of memory spoken for by requests sent here, until they end
        self.reserved = 0  # tokens of memory taken now
        self.assigned = 0  # requests whose tokens are written here and have not ended
        self.batch = 0
        self.cached = 0
        self.times: list[float] = []  # when each step of the batch ended
        self.gaps: list[float] = []  # since the step before
        self.ends: dict[int, list[int]] = defaultdict(list)  # step -> requests that end with it
        self.reading: list[int] = []
        self.running = False
        self.writes = False
        self.busy = 0.0

    @property
    def pending_tokens(self) -> int:
        return self.pending_prompt + self.pending_output

    def return_home(self) -> None:
        """A borrowed machine without foreign work is its own pool's again."""
        foreign = self.pending_prompt if self.home == "token" else self.assigned
        if self.role == "mixed" and not foreign:
            self.role = self.home
