"""Reasoning in blocks: what is seen of a reasoning so far, and what may be done next.

    0 reason one step    1 decompose    2 debate    3 refine    4 terminate

Whatever is asked for: refining before anything is there is reasoning one step, and a reasoning that
has an answer, or one action left, terminates.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

BLOCKS = ("reason", "decompose", "debate", "refine", "terminate")
REASON, DECOMPOSE, DEBATE, REFINE, TERMINATE = range(5)
GRADES = 7


class Observation(NamedTuple):
    """B reasonings. grades: [B, 7] in {1, 2, 3}. step: [B] long, actions so far. answered: [B]."""

    grades: Tensor
    step: Tensor
    answered: Tensor


class Environment(Protocol):
    """Reasonings side by side, each of which an action takes a step further."""

    max_actions: int

    def reset(self, count: int, generator: torch.Generator) -> Observation: ...

    def step(
        self, actions: Tensor, generator: torch.Generator
    ) -> tuple[Observation, Tensor, Tensor]:
        """What follows on actions [B], the rewards [B], and which reasonings ended [B] bool. Those
        that had ended before stay as they are, with reward 0."""
        ...


def executed(actions: Tensor, seen: Observation, max_actions: int) -> Tensor:
    """What is done when actions [B] are asked for."""
    actions = torch.where((seen.step == 0) & (actions == REFINE), REASON, actions)
    return torch.where(seen.answered | (seen.step + 1 >= max_actions), TERMINATE, actions)
