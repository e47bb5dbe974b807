"""TAB-PO on a synthetic annotation task: does the barrier keep the chosen labels probable?

A tiny transformer, tuned on a corpus that obeys the labels' rule most of the time only, confuses
labels. Pairs differ in one label: the rejected answer has the class that the tuned model confuses
with it most. DPO and TAB-PO train from the tuned model on the same pairs.
"""

from __future__ import annotations

from tokenry.lab.annotation import AnnotationBench, AnnotationPoint
from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import curves
from tokenry.lab.scale import Scale, at
from tokenry.lab.table import Table, over_seeds
from tokenry.learn.preference.dpo import DPO
from tokenry.learn.preference.tab_po import TABPO
from tokenry.papers.base import Paper
from tokenry.tasks.worlds.annotation import Annotation

OBJECTIVES, RATES = {"dpo": DPO(0.5), "tab-po": TABPO(0.5)}, (1e-4, 3e-4)
EXACT, RIGHT = "exact match of both labels", "log p of the right label, nats"
CONFUSED = "log p of its most confusable class, nats"


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    """Five tasks, seeds from `100 seed`."""
    tasks, size = at(
        scale,
        full=(5, {}),
        smoke=(2, {"tune_steps": 2, "pairs": 16, "held_out": 16, "steps": 2, "every": 1}),
    )
    table, lines = Table(), {}

    def trained(number: int) -> dict[str, list[AnnotationPoint]]:
        bench = AnnotationBench(Annotation(number), **size)
        return {"sft": [bench.measure(0, bench.tuned)]} | {
            f"{name}, rate {rate:g}": bench.train(objective, rate)
            for rate in RATES
            for name, objective in OBJECTIVES.items()
        }

    for number, runs in over_seeds(trained, seed, tasks):
        for name, points in runs.items():
            _, exact, right, confused = points[-1]
            table.add_all({EXACT: exact, RIGHT: right, CONFUSED: confused}, "", number, name)
            for what, row in (("right label", 2), ("confusable label", 3)):
                lines[f"{name}, {what} [{number}]"] = [(p.step, p[row]) for p in points]
    best = {
        name: max(
            (f"{name}, rate {rate:g}" for rate in RATES), key=lambda n: table.mean(f"{n}: {EXACT}")
        )
        for name in OBJECTIVES
    }
    ours = best["tab-po"]
    return verdict(
        table,
        {
            "TAB-PO's exact match on held-out inputs, each method at the better of two learning "
            "rates, is above the tuned model's": table.gap(f"{ours}: {EXACT}", f"sft: {EXACT}"),
            "and above DPO's": table.gap(f"{ours}: {EXACT}", f"{best['dpo']}: {EXACT}"),
            "and the right label's log-probability rises": table.gap(
                f"{ours}: {RIGHT}", f"sft: {RIGHT}"
            ),
        },
        plots=[curves(lines, "step", "log p of a label, nats")],
    )


PAPER = Paper(
    number=123,
    key="tab-po",
    title="Preference Optimization with a Token-Level Adaptive Barrier for Token-Critical "
    "Structured Generation",
    arxiv="2603.00025",
    role="objective",
    family="preference",
    claim="Token weights and a likelihood barrier under improbable chosen tokens raise F1 of "
    "structured clinical annotation over supervised tuning by about 4% (PV-Miner).",
    reproduce=reproduce,
    threads=1,
)
