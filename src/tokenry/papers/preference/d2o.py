"""D2O where nothing but negatives is known to be clean of noise: harm against coverage.

A Markov language uses one of 4 harmful tokens in 30% of its sentences; a small transformer fitted
to it is the reference. Negatives are its harmful sentences. DPO's positives are noisy: answers of
the reference as they come, 30% of them harmful too. Gradient ascent on the negatives has no
positives at all, D2O the mean of 8 answers of the reference. Each method is given two settings
and counts by the lowest harmful rate that it has while the perplexity of held-out clean sentences
stays within 10% of the start.
"""

from __future__ import annotations

from typing import Any

from tokenry.lab.harmful_language import HarmfulBench
from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import curves
from tokenry.lab.scale import Scale, at
from tokenry.lab.table import Table, over_seeds
from tokenry.lab.toy_training import NegativeLogLikelihood
from tokenry.learn.preference.d2o import D2O
from tokenry.learn.preference.dpo import DPO
from tokenry.papers.base import Paper
from tokenry.tasks.worlds.harmful_language import HarmfulLanguage

ANCHORS, RATE = 8, 3e-4
ALLOWED = 1.1  # perplexity of clean text, relative to the start
SETTINGS: dict[str, tuple[Any, Any, float]] = {
    "ascent, rate 1e-4": (NegativeLogLikelihood(-1.0), "negatives", 1e-4),
    "ascent, rate 3e-4": (NegativeLogLikelihood(-1.0), "negatives", RATE),
    "dpo, beta 0.1": (DPO(0.1), "pairs", RATE),
    "dpo, beta 0.5": (DPO(0.5), "pairs", RATE),
    "d2o, beta 0.1": (D2O(0.1, 0.1, anchors=ANCHORS), "anchors", RATE),
    "d2o, beta 0.3": (D2O(0.1, 0.3, anchors=ANCHORS), "anchors", RATE),
}
END, BEST = "clean perplexity at the end, of the start's", "harmful rate in bounds"


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    """Four languages, seeds from `100 seed`."""
    small = {"fit_steps": 2, "pairs": 4, "drawn": 64, "held_out": 16, "steps": 2, "every": 1}
    languages, size = at(scale, full=(4, {}), smoke=(2, {**small, "samples": 16}))
    table, lines = Table(), {}

    def trained(number: int) -> dict[str, list[tuple[float, float]]]:
        bench = HarmfulBench(HarmfulLanguage(number), anchors=ANCHORS, **size)
        return {name: bench.train(*setting) for name, setting in SETTINGS.items()}

    for number, runs in over_seeds(trained, seed, languages):
        best: dict[str, float] = {}
        for name, points in runs.items():
            (start, at_start), (end, harmful) = points[0], points[-1]
            table.add(f"{name}: harmful rate at the end", harmful, "", number)
            table.add(f"{name}: {END}", end / start, "", number)
            method, _, _ = name.partition(",")
            rates = [rate for perplexity, rate in points if perplexity <= ALLOWED * start]
            best[method] = min(*rates, best.get(method, 1.0))
            lines[f"{name} [{number}]"] = [(p / start, r) for p, r in points if p < 3 * start]
        table.add("reference: harmful rate", at_start, "", number)
        table.add_all({f"{method}: {BEST}": rate for method, rate in best.items()}, "", number)
    return verdict(
        table,
        {
            "D2O's lowest harmful rate at a clean perplexity within 10 % of the start, each method "
            "at the better of two settings, is below DPO's": table.gap(
                f"dpo: {BEST}", f"d2o: {BEST}"
            ),
            "and below gradient ascent's": table.gap(f"ascent: {BEST}", f"d2o: {BEST}"),
            "ascent at the others' learning rate ends more than 10 % above that perplexity": (
                table.above(f"ascent, rate 3e-4: {END}", ALLOWED)
            ),
        },
        reason="positives and anchors come from one distribution here, so that DPO's expected "
        "gradient at the reference is D2O's: what averages of 8 can win is only noise",
        plots=[curves(lines, "perplexity of clean sentences, of the start's", "harmful sentences")],
    )


PAPER = Paper(
    number=179,
    key="d2o",
    title="Negating Negatives: Alignment via Distributional Dispreference Optimization",
    arxiv="2403.03419",
    role="objective",
    family="preference",
    claim="With negatives only, contrasting each with the mean of the model's own answers removes "
    "harm further than DPO on noisy pairs, without the collapse of gradient ascent.",
    reproduce=reproduce,
    threads=1,
)
