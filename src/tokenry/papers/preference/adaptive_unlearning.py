"""Adaptive unlearning of hallucinated module names, in a character model that spells them.

One module in five that the corpus imports does not exist; a small transformer fitted to it writes
such names, and misspells others. On its own texts, with the same masks and steps: gradient ascent,
NPO and the hybrid objective on texts collected once, and the hybrid with three rounds of discovery,
each of which collects the current model's texts on the prompts that failed, mutated.
"""

from __future__ import annotations

import math

from tokenry.lab.import_lines import NamingBench, NamingPoint
from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import bars
from tokenry.lab.scale import Scale, at
from tokenry.lab.table import Table, over_seeds
from tokenry.learn.preference.unlearning import AdaptiveUnlearning
from tokenry.papers.base import Paper
from tokenry.tasks.worlds.import_lines import ImportLines

METHODS = {
    "ascent": (AdaptiveUnlearning(keep=0.0, kind="ascent"), 1),
    "npo": (AdaptiveUnlearning(keep=0.0, kind="npo"), 1),
    "hybrid": (AdaptiveUnlearning(), 1),
    "hybrid, loop": (AdaptiveUnlearning(), 3),
}
LABELS = {
    "hallucinated names, held-out prompts": "",
    "hallucinated names, mutated prompts": "",
    "perplexity outside names": "",
    "KL on name tokens": "nats",
    "KL elsewhere": "nats",
}
LOG, ALLOWED = "log perplexity outside names", math.log(1.05)


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    """Five corpora, seeds from `100 seed`."""
    small = {"lines": 100, "fit_steps": 2, "pool": 8, "held_out": 8, "steps": 3}
    corpora, size = at(scale, full=(5, {}), smoke=(2, small))
    table = Table()

    def measured(number: int) -> dict[str, NamingPoint]:
        bench = NamingBench(ImportLines(number), **size)
        return {"before": bench.measure(bench.model)} | {
            name: bench.measure(bench.unlearned(objective, rounds))
            for name, (objective, rounds) in METHODS.items()
        }

    for number, points in over_seeds(measured, seed, corpora):
        for name, point in points.items():
            for (label, unit), value in zip(LABELS.items(), point, strict=True):
                table.add(f"{name}: {label}", value, unit, number)
            table.add(f"{name}: {LOG}", math.log(point.perplexity), "nats", number)
    rate, mutated, _, *kl = LABELS
    loop = "hybrid, loop"
    return verdict(
        table,
        {
            "the hybrid with the loop at least halves the share of hallucinated names on held-out "
            "prompts": table.gap(f"before: {rate}", f"{loop}: {rate}", factor=2.0),
            "it keeps the perplexity outside names within 5 %": table.gap(
                f"before: {LOG}", f"{loop}: {LOG}", by=-ALLOWED
            ),
            "which ascent does not": table.gap(f"ascent: {LOG}", f"before: {LOG}", by=ALLOWED),
            "it hallucinates less than the static hybrid on mutated prompts": table.gap(
                f"hybrid: {mutated}", f"{loop}: {mutated}"
            ),
            "its KL per token is more than 5 times larger on names than elsewhere": table.gap(
                f"{loop}: {kl[0]}", f"{loop}: {kl[1]}", factor=5.0
            ),
        },
        plots=[
            bars(
                {
                    label: {n: table.mean(f"{n}: {label}") for n in ("before", *METHODS)}
                    for label in group
                },
                ylabel,
            )
            for group, ylabel in (((rate, mutated), "hallucinated names"), (kl, "nats per token"))
        ],
    )


PAPER = Paper(
    number=115,
    key="adaptive-unlearning",
    title="LLM Ghostbusters: Surgical Hallucination Suppression via Adaptive Unlearning",
    arxiv="2605.01047",
    role="objective",
    family="preference",
    claim="A token objective that reinforces valid names and suppresses invented ones, fed by a "
    "loop that keeps finding prompts that fail, removes most invented names and changes little "
    "else.",
    reproduce=reproduce,
    threads=1,
)
