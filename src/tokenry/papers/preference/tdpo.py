"""TDPO in the toy preference world: does token-level KL control buy reward per divergence?

DPO and TDPO2 start from the same fitted reference, see the same batches of the same Bradley-Terry
pairs at the same learning rate, each at the same two values of beta. On the way their true reward
and their divergences from the reference are measured on fresh samples.
"""

from __future__ import annotations

from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import curves
from tokenry.lab.preference_world import (
    PreferenceBench,
    WorldPoint,
    add_point,
    frontier,
    frontier_gap,
)
from tokenry.lab.scale import Scale, at
from tokenry.lab.table import Table, over_seeds
from tokenry.learn.preference.dpo import DPO
from tokenry.learn.preference.tdpo import TDPO
from tokenry.papers.base import Paper
from tokenry.tasks.worlds.preference import PreferenceWorld

BETAS = (0.1, 1.0)  # the paper's default, and DPO's best of 0.1, 0.3, 1 on another seed's world
METHODS = {
    **{f"dpo:{beta}": DPO(beta) for beta in BETAS},
    **{f"tdpo2:{beta}": TDPO(beta) for beta in BETAS},
    "tdpo1:0.1": TDPO(0.1, variant="tdpo1"),
}
GAP = "tdpo2 minus dpo: reward at equal KL"


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    """Four worlds, seeds from `100 seed`."""
    worlds, size = at(
        scale,
        full=(4, {"steps": 120, "measure_every": 30, "samples": 512}),
        smoke=(2, {"steps": 2, "measure_every": 1, "samples": 16, "fit_steps": 2, "drawn": 64}),
    )
    table, lines = Table(), {}

    def trained(number: int) -> dict[str, list[WorldPoint]]:
        bench = PreferenceBench(PreferenceWorld(number), batch_size=32, learning_rate=3e-4, **size)
        return {name: bench.train(objective)[1] for name, objective in METHODS.items()}

    for number, runs in over_seeds(trained, seed, worlds):
        for name, points in runs.items():
            add_point(table, name, points[-1], number)
            lines[f"{name} [{number}]"] = frontier(points)
        ours, theirs = ([runs[f"{name}:{beta}"] for beta in BETAS] for name in ("tdpo2", "dpo"))
        table.add(GAP, frontier_gap(ours, theirs), "per sequence", number)
    return verdict(
        table,
        {
            "at beta 0.1 and the same steps TDPO2's rejected sequence KL is below DPO's": table.gap(
                "dpo:0.1: rejected sequence KL", "tdpo2:0.1: rejected sequence KL"
            ),
            "and its entropy is higher": table.gap(
                "tdpo2:0.1: sample entropy", "dpo:0.1: sample entropy"
            ),
            "its true reward at equal KL, each method at the better of two betas, is above "
            "DPO's": table.above(GAP, 0.0),
        },
        plots=[curves(lines, "KL(policy || reference), nats", "true reward", log="x")],
    )


PAPER = Paper(
    number=0,
    key="tdpo",
    title="Token-level Direct Preference Optimization",
    arxiv="2404.11999",
    role="objective",
    family="preference",
    claim="A DPO margin corrected by the sequential forward KL of both completions keeps the "
    "policy closer to its reference token by token, for more reward at the same divergence.",
    reproduce=reproduce,
    threads=1,
)
