"""Tables of outcomes: the optimum of E[r] - beta D, exactly, for any divergence D.

Outcomes have a random reference and random rewards. Each divergence's optimum is known at every
beta: what reward it expects, its entropy, and how many outcomes it keeps (with at least a tenth of
their reference probability). Between neighbouring betas, optima are compared at equal reward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from tokenry.core.divergences import divergence_named
from tokenry.lab.frontiers import crossing
from tokenry.learn.preference.f_dpo import optimal_policy

QUANTITIES: tuple[str, ...] = ("expected reward", "entropy, nats", "outcomes kept")
"""What is measured of an optimum."""


@dataclass(frozen=True)
class OutcomeTables:
    """Seeded tables. count: how many; outcomes: of each."""

    seed: int = 0
    count: int = 20
    outcomes: int = 64

    @cached_property
    def data(self) -> tuple[Tensor, Tensor]:
        """Reference log-probabilities and rewards, [count, outcomes] each."""
        generator = torch.Generator().manual_seed(self.seed)
        shape = (2, self.count, self.outcomes)
        reference, reward = torch.randn(shape, generator=generator, dtype=torch.float64)
        return reference.log_softmax(-1), reward

    def optimum(self, divergence: str, beta: float) -> Tensor:
        """The `QUANTITIES` of each table's optimum, [3, count]."""
        reference, reward = self.data
        named = divergence_named(divergence)
        probability = optimal_policy(reference, reward, beta=beta, divergence=named).exp()
        kept = probability >= 0.1 * reference.exp()
        entropy = torch.special.entr(probability)
        rows = (probability * reward).sum(-1), entropy.sum(-1), kept.double().mean(-1)
        return torch.stack(rows)

    def optima(self, divergence: str, betas: Sequence[float]) -> Tensor:
        """The same at each beta, from the largest to the smallest, [betas, 3, count]."""
        return torch.stack([self.optimum(divergence, beta) for beta in sorted(betas, reverse=True)])


def at_equal_reward(optima: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """The `QUANTITIES` but the reward at a share of the range of rewards that all optima have.

    Args:
        optima: divergence -> [betas, 3, count], rewards rising along the first axis.
        share: from the lowest reward (0) to the highest (1) that every divergence has.

    Returns:
        divergence -> [2, count]; linear between neighbouring betas.
    """
    rewards = torch.stack([path[:, 0] for path in optima.values()])  # [divergences, betas, count]
    low, high = rewards.amin(1).amax(0), rewards.amax(1).amin(0)
    wanted = (low + share * (high - low)).tolist()
    return {
        name: torch.tensor(
            [
                [crossing(path[:, [0, row], table].tolist(), x) for table, x in enumerate(wanted)]
                for row in (1, 2)
            ],
            dtype=path.dtype,
        )
        for name, path in optima.items()
    }
