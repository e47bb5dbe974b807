"""MAH-DPO: two tastes that conflict, one trunk with two heads, and a dial between them.

A toy language is judged by two hidden tables of token rewards, A and B, that contradict each other
on four tokens. MAH-DPO trains one model with a head for each; its heads are then mixed at five
weights. It is compared with DPO on the union of the pairs and with two separate DPO models.
"""

from __future__ import annotations

from itertools import pairwise

import torch

from tokenry.lab.frontiers import hypervolume
from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import curves
from tokenry.lab.preference_world import PreferenceBench, mean_rewards
from tokenry.lab.scale import Scale, at
from tokenry.lab.table import Table, over_seeds
from tokenry.learn.preference.dpo import DPO
from tokenry.learn.preference.mah_dpo import MAHDPO, mixed_model
from tokenry.papers.base import Paper
from tokenry.tasks.worlds.preference import PreferenceWorld, opposed

BETA = 0.1
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
MOVE = "smallest move of a reward along the front"
GAIN = "gain in A and B over the reference"


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    """Six worlds, seeds from `100 seed`."""
    worlds, samples, size = at(
        scale,
        full=(6, 1000, {"fit_steps": 200, "drawn": 3000, "steps": 200, "measure_every": 200}),
        smoke=(2, 16, {"fit_steps": 2, "drawn": 64, "steps": 2, "measure_every": 2}),
    )
    table, lines = Table(), {}

    def rewards(number: int) -> dict[str, list[float]]:
        """Mean true rewards under A and B of every model."""
        tastes = (world := PreferenceWorld(number)), opposed(world)
        bench = PreferenceBench(
            world, fit_batch=64, batch_size=32, learning_rate=5e-4, samples=16, **size
        )
        a, n = bench.pairs, bench.drawn
        b = tastes[1].pairs(n // 2, torch.Generator().manual_seed(number), bench.held_out(n))
        both, owner = a + b, torch.cat([torch.zeros(len(a)), torch.ones(len(b))])
        heads = MAHDPO(BETA).modules(bench.reference).requires_grad_(True)
        given = {"pairs": both, "columns": {"objective": owner.repeat(2, 1)}, "modules": heads}
        trunk, _ = bench.train(MAHDPO(BETA), **given)
        models = {f"weight of A {w:g}": mixed_model(trunk, heads, [w, 1 - w]) for w in WEIGHTS}
        models |= {"reference": bench.reference, "union": bench.train(DPO(BETA), pairs=both)[0]}
        for name, pairs in (("only A", a), ("only B", b)):
            models[name], _ = bench.train(DPO(BETA), pairs=pairs, batch_size=16)
        return {
            name: mean_rewards(model, tastes, samples, number) for name, model in models.items()
        }

    for number, points in over_seeds(rewards, seed, worlds):
        front = [points[f"weight of A {weight:g}"] for weight in WEIGHTS]
        start, only = points["reference"], (points["only A"], points["only B"])
        worst = (min(a for a, _ in points.values()), min(b for _, b in points.values()))
        for name, (a, b) in points.items():
            table.add_all({"reward A": a, "reward B": b}, "per sequence", number, name)
            lines[f"{name} [{number}]"] = [(a, b)]
        lines[f"mixed heads [{number}]"] = front
        moves = [move for (a, b), (c, d) in pairwise(front) for move in (c - a, b - d)]
        table.add(MOVE, min(moves), "per sequence", number)
        for name, (one, two) in (("one-hot ends", front[:: 1 - len(front)]), ("separate", only)):
            table.add(f"{name}: {GAIN}", one[0] + two[1] - sum(start), "per sequence", number)
        for name, chosen in (("mixed heads", front), ("union", [points["union"]])):
            table.add(f"{name}: hypervolume", hypervolume(chosen, worst), "reward^2", number)
    return verdict(
        table,
        {
            "at each step of its weight reward A rises and B falls": table.above(MOVE, 0.0),
            "the one-hot ends keep at least 90 % of the separate models' gain over the reference": (
                table.gap(f"one-hot ends: {GAIN}", f"separate: {GAIN}", factor=0.9)
            ),
            "the front's hypervolume (over the worst rewards of any model) is above that of DPO on "
            "both": table.gap("mixed heads: hypervolume", "union: hypervolume"),
        },
        reason="separate models differ from world to world by more than the tenth in question",
        plots=[curves(lines, "true reward A", "true reward B")],
    )


PAPER = Paper(
    number=137,
    key="mah-dpo",
    title="Simultaneous Multi-objective Alignment Across Verifiable and Non-verifiable Rewards",
    arxiv="2510.01167",
    role="objective",
    family="preference",
    claim="One trunk with a head per objective serves conflicting preferences with little loss "
    "against separate models, and head weights steer the trade-off at inference.",
    reproduce=reproduce,
    threads=1,
)
