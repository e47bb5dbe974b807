"""Ways through reasonings in blocks: trained navigators, fixed sequences, and chance, on one world.

All are judged on the same new problems. The fixed sequence is the best of all that the constraints
allow, found on problems of the family that navigators are trained on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

import torch
from torch import Tensor

from tokenry.decode.routing.rlot import Constraints, Way, played
from tokenry.tasks.reasoning_blocks import BLOCKS, REFINE, TERMINATE, Observation
from tokenry.tasks.worlds.reasoning import SyntheticReasoning

FAMILIES: dict[str, dict[str, Any]] = {
    "arithmetic": {"slip": 0.25, "tangled": 0.5, "alternatives": 0.25},
    "commonsense": {"slip": 0.15, "tangled": 0.25, "alternatives": 0.6},
}
"""Settings of `SyntheticReasoning`: one slips and tangles more, one has more methods at hand."""


@dataclass(frozen=True)
class FixedBlocks:
    """Blocks in a fixed order, one row for each reasoning: [B, L] long; then terminate."""

    sequences: Tensor

    def act(self, seen: Observation) -> Tensor:
        """[B] long."""
        step = seen.step.clamp(max=self.sequences.shape[1] - 1)
        chosen = self.sequences.expand(len(step), -1).gather(1, step[:, None])[:, 0]
        return torch.where(seen.step < self.sequences.shape[1], chosen, TERMINATE)


@dataclass(frozen=True)
class BlocksAtRandom:
    """Any allowed block, evenly."""

    generator: torch.Generator

    def act(self, seen: Observation) -> Tensor:
        """[B] long."""
        allowed = constraints_without().allowed(seen).float()
        return torch.multinomial(allowed, 1, generator=self.generator)[:, 0]


def solved(way: Way, family: str, count: int, seed: int) -> Tensor:
    """Which of `count` new problems of a family a way solves, [count] bool."""
    world = world_of(family)
    played(way, world, count, torch.Generator().manual_seed(10**6 + seed))
    return world.solved()


def world_of(family: str) -> SyntheticReasoning:
    return SyntheticReasoning(**FAMILIES[family])


def best_sequence(family: str, each: int, seed: int, blocks: Sequence[int] | None = None) -> Tensor:
    """The sequence [1, L] of blocks, terminate last, that solves most of `each` problems.

    blocks: that it is made of; by default all but terminate.
    """
    world = world_of(family)
    used = range(TERMINATE) if blocks is None else blocks
    made = [
        [*before, *[TERMINATE] * (world.max_actions - length)]
        for length in range(world.max_actions)
        for before in product(used, repeat=length)
        if before[:1] != (REFINE,)
    ]
    sequences = torch.tensor(made)
    ways = FixedBlocks(sequences.repeat_interleave(each, 0))
    played(ways, world, len(made) * each, torch.Generator().manual_seed(seed))
    rates = world.solved().view(len(made), each).double().mean(1)
    return sequences[int(rates.argmax())][None]


def common_pairs(way: Way, family: str, count: int, seed: int, most: int = 8) -> dict[str, float]:
    """The most frequent pairs of neighbouring blocks, as shares of all."""
    generator = torch.Generator().manual_seed(10**6 + seed)
    _, actions = played(way, world_of(family), count, generator)
    pairs = Counter(
        pair for row in actions.tolist() for pair in pairwise(row) if pair[1] >= 0
    )  # nothing follows on the end
    total = max(1, sum(pairs.values()))
    return {
        " → ".join(BLOCKS[block] for block in pair): number / total
        for pair, number in pairs.most_common(most)
    } or {"none": 0.0}


def constraints_without(*names: str) -> Constraints:
    """Those of the worlds, without some blocks."""
    return Constraints(SyntheticReasoning().max_actions, tuple(map(BLOCKS.index, names)))
