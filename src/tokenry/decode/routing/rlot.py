"""RLoT: a small network chooses what a language model does next in its reasoning, step by step.

State s in {1, 2, 3}^7, the model's own grades of what stands there; actions a, five blocks

    0 reason one step    1 decompose    2 debate    3 refine    4 terminate

    Q(s, a) = V(s) + A(s, a) - mean_b A(s, b)                         dueling
    V, A      32 -> 32 -> 1 and 32 -> 32 -> 5 on a shared 7 -> 32, ReLU between: 2,566 weights
    a_t     = argmax over allowed a of Q(s_t, a)

Allowed: terminate alone once the text has an answer, or when one action is left of `max_actions`;
no refining of what is not there yet. An environment holds to the same whatever is asked for
(`tasks.reasoning_blocks`).

The language model stays as it is; `learn.recipes.rlot` trains the network.

Source: RL of Thoughts: Navigating LLM Reasoning with Inference-time Reinforcement Learning (arXiv
2505.14140). Reconstructed: the widths, from the number of weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from tokenry.core.checks import in_range, within
from tokenry.core.errors import ShapeError
from tokenry.tasks.reasoning_blocks import (
    BLOCKS,
    GRADES,
    REFINE,
    TERMINATE,
    Environment,
    Observation,
)


class DuelingQNetwork(nn.Module):
    """Q [B, actions] from grades [B, grades], any numeric dtype."""

    def __init__(self, grades: int = GRADES, actions: int = len(BLOCKS), hidden: int = 32):
        super().__init__()
        self.shared = nn.Sequential(nn.Linear(grades, hidden), nn.ReLU())
        self.value = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        self.advantage = nn.Sequential(
            nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, actions)
        )

    def forward(self, grades: Tensor) -> Tensor:
        states = self.shared(grades.to(next(self.parameters())))
        advantage = self.advantage(states)
        return self.value(states) + advantage - advantage.mean(-1, keepdim=True)


@dataclass(frozen=True)
class Constraints:
    """Which blocks may follow.

    Args:
        max_actions: of a reasoning, terminate included, in [1, inf); the paper's are 5 to 10.
        without: blocks that are never used; terminate stays.
    """

    max_actions: int = 8
    without: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        within(self, "[1, inf)", "max_actions", integer=True)
        for block in self.without:
            in_range("a block that is left out", block, "[0, 3]", integer=True)

    def allowed(self, seen: Observation) -> Tensor:
        """[B, 5] bool; terminate is always among them."""
        mask = torch.ones(len(seen.step), len(BLOCKS), dtype=torch.bool)
        mask[:, list(self.without)] = False
        mask[seen.step == 0, REFINE] = False
        mask[seen.answered | (seen.step + 1 >= self.max_actions), :TERMINATE] = False
        return mask


@dataclass(frozen=True)
class Navigator:
    """Chooses the next block of every reasoning: the best, or with probability epsilon any."""

    network: nn.Module
    constraints: Constraints

    @torch.no_grad()
    def act(
        self, seen: Observation, epsilon: float = 0.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """[B] long. epsilon: in [0, 1]. Only with it are random numbers drawn."""
        in_range("epsilon", epsilon, "[0, 1]")
        if seen.grades.ndim != 2 or seen.grades.shape[1] != GRADES:
            raise ShapeError(f"grades must be [B, {GRADES}], got {[*seen.grades.shape]}")
        allowed = self.constraints.allowed(seen)
        best = self.network(seen.grades).masked_fill(~allowed, -torch.inf).argmax(-1)
        if not epsilon:
            return best
        tried = torch.multinomial(allowed.float(), 1, generator=generator)[:, 0]
        return torch.where(torch.rand(len(best), generator=generator) < epsilon, tried, best)


class Way(Protocol):
    """Anything that chooses blocks: a navigator, or what it is compared with."""

    def act(self, seen: Observation) -> Tensor:
        """[B] long."""
        ...


def played(
    way: Way, environment: Environment, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The sum of the rewards of each of `count` reasonings, [count], and their actions, [count, L]
    with -1 behind the end."""
    seen, total = environment.reset(count, generator), torch.zeros(count)
    alive, actions = torch.ones(count, dtype=torch.bool), []
    while bool(alive.any()):
        chosen = way.act(seen)
        actions.append(torch.where(alive, chosen, -1))
        seen, reward, done = environment.step(chosen, generator)
        total, alive = total + reward, alive & ~done
    return total, torch.stack(actions, 1)
