"""RLoT's navigator on synthetic reasoners of two families, beside fixed orders of its blocks.

No small model grades its own reasoning, so hidden states of a solution, noisy grades of them and
the blocks' effects stand in for one (`tasks.worlds.reasoning`). A navigator is trained on each
family; beside it stand reasoning steps alone, as many as are best, the best of all fixed sequences
of blocks, and blocks at random. Navigators without one of the blocks are trained too.
"""

from __future__ import annotations

import torch

from tokenry.decode.routing.rlot import Way
from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import bars
from tokenry.lab.reasoning_paths import (
    FAMILIES,
    BlocksAtRandom,
    FixedBlocks,
    best_sequence,
    common_pairs,
    constraints_without,
    solved,
    world_of,
)
from tokenry.lab.scale import Scale, at
from tokenry.lab.table import Table, over_seeds
from tokenry.learn.recipes.rlot import NavigatorTraining
from tokenry.papers.base import Paper
from tokenry.tasks.reasoning_blocks import BLOCKS, REASON

HOME, AWAY = FAMILIES
ABLATED = BLOCKS[1:4]


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    """Four trainings of each kind, seeds from `100 seed`."""
    seeds, updates, each, judged = at(scale, full=(4, 1000, 200, 4000), smoke=(2, 3, 1, 20))
    table, pairs = Table(), {}

    def measured(number: int) -> None:
        train = NavigatorTraining(updates=updates, parallel=16, seed=number)
        ways: dict[str, Way] = {
            "navigator": train(world_of(HOME), constraints_without()),
            "navigator of the other family": train(world_of(AWAY), constraints_without()),
            "reasoning alone": FixedBlocks(best_sequence(HOME, each, number, [REASON])),
            "best fixed sequence": FixedBlocks(best_sequence(HOME, each, number)),
            "at random": BlocksAtRandom(torch.Generator().manual_seed(number)),
        }
        for block in ABLATED:
            ways[f"without {block}"] = train(world_of(HOME), constraints_without(block))
        for family in FAMILIES:
            for name, way in ways.items():
                rate = solved(way, family, judged, number).double().mean()
                table.add(f"{family}: {name}", rate, "solved", number)
        alone = FixedBlocks(best_sequence(AWAY, each, number, [REASON]))
        rate = solved(alone, AWAY, judged, number).double().mean()
        table.add(f"{AWAY}: reasoning alone, its own length", rate, "solved", number)
        pairs[number] = common_pairs(ways["navigator"], HOME, judged, number)

    numbers = [number for number, _ in over_seeds(measured, seed, seeds)]
    full = f"{HOME}: navigator"
    checks = {
        "the navigator solves more than reasoning steps alone": table.gap(
            full, f"{HOME}: reasoning alone"
        ),
        "and more than the best fixed sequence of blocks": table.gap(
            full, f"{HOME}: best fixed sequence"
        ),
        "on the other family it solves more than reasoning steps alone": table.gap(
            f"{AWAY}: navigator", f"{AWAY}: reasoning alone, its own length"
        ),
    }
    for block in ABLATED:
        checks[f"without {block} it solves less"] = table.gap(full, f"{HOME}: without {block}")
    rates = {
        family: {
            label.partition(": ")[2]: table.mean(label)
            for label in table.labels()
            if label.startswith(f"{family}: ")
        }
        for family in FAMILIES
    }
    return verdict(
        table,
        checks,
        reason="a synthetic reasoner. The best of all fixed sequences, chosen on problems of the "
        "family, solves more than a network that sees the noisy grades of the moment and nothing "
        "of the past",
        plots=[bars(rates, "solved"), bars({"share": pairs[numbers[0]]}, "of all pairs")],
    )


PAPER = Paper(
    number=5,
    key="rlot",
    title="RL of Thoughts: Navigating LLM Reasoning with Inference-time Reinforcement Learning",
    arxiv="2505.14140",
    role="router",
    family="policy",
    claim="A network of 2,566 weights that picks the next block of reasoning from the model's own "
    "grades beats fixed orders of blocks, also on tasks that it was not trained on.",
    reproduce=reproduce,
    threads=1,
)
