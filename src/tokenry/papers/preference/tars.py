"""TARS: does perturbing evidence-irrelevant tokens keep DPO from learning a shortcut?

A prompt lists evidence (keys and their values), asks for one key's value and adds a filler word. In
the preference data the filler names the right value nineteen times in twenty; at test it says
nothing. An answer other than the evidence's value is a hallucination. A token is relevant to TARS
if the evidence has it too; the control masks the asked key or the filler at random.
"""

from __future__ import annotations

from typing import Any

import torch

from tokenry.lab.lookup import LookupBench, wrong
from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import curves
from tokenry.lab.scale import Scale, at
from tokenry.lab.table import Table, over_seeds
from tokenry.learn.preference.dpo import DPO
from tokenry.learn.preference.tars import TARS
from tokenry.papers.base import Paper

BETA, RATE = 0.1, 5e-4
NOTHING = "hallucinations, filler says nothing"
TRAINED = "hallucinations, filler as in training"


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    """Five tasks, seeds from `100 seed`."""
    small = {"fitted": 80, "fit_steps": 5, "pairs": 16, "tests": 16, "steps": 2, "every": 1}
    tasks, size = at(scale, full=(5, {}), smoke=(2, small))
    table, lines = Table(), {}

    def compared(number: int) -> dict[str, tuple[dict[str, float], list[tuple[int, float]]]]:
        bench, draw = LookupBench(number, **size), torch.Generator().manual_seed(number)

        def at_random(row: dict[str, Any], context: Any) -> list[float | None]:
            relevance = shared_with_evidence(row, context)
            drawn = torch.rand(len(relevance), generator=draw).tolist()
            return [None if r is None else x for r, x in zip(relevance, drawn, strict=True)]

        masked: dict[str, Any] = {"most": 0.5, "relevance": shared_with_evidence}
        methods = {
            "tars": TARS(BETA, **masked),
            "tars without the spectral term": TARS(BETA, frequency_weight=0.0, **masked),
            "dpo": DPO(BETA),
            "dpo, random masks": TARS(BETA, most=0.5, frequency_weight=0.0, relevance=at_random),
        }
        start = {name: wrong(bench.reference, test) for name, test in bench.data[1].items()}
        return {"reference": (start, [])} | {
            name: bench.train(objective, RATE) for name, objective in methods.items()
        }

    for number, runs in over_seeds(compared, seed, tasks):
        for name, (shares, points) in runs.items():
            values = {f"hallucinations, {test}": share for test, share in shares.items()}
            table.add_all(values, "share", number, name)
            if points:
                lines[f"{name} [{number}]"] = points
    return verdict(
        table,
        {
            "TARS hallucinates less than DPO where the filler says nothing": table.gap(
                f"dpo: {NOTHING}", f"tars: {NOTHING}"
            ),
            "and at most 3 points more where it is as in training": table.gap(
                f"dpo: {TRAINED}", f"tars: {TRAINED}", by=-0.03
            ),
        },
        reason="where the filler is as in training DPO's shortcut is right; TARS gives it up, and "
        "makes up for it only from a reference that has all but learnt the lookup",
        plots=[curves(lines, "step", "hallucinations where the filler says nothing")],
    )


def shared_with_evidence(row: dict[str, Any], _: Any) -> list[float | None]:
    """1 for a word of the question that the evidence has, 0 for another; the rest stays."""
    words, evidence = row["prompt"].split(), row["evidence"].split()
    question = range(len(evidence) + 1, len(words) - 1)
    return [float(word in evidence) if n in question else None for n, word in enumerate(words)]


PAPER = Paper(
    number=1,
    key="tars",
    title="TARS: MinMax Token-Adaptive Preference Strategy for MLLM Hallucination Reduction",
    arxiv="2507.21584",
    role="objective",
    family="preference",
    claim="Preference training on prompts whose evidence-irrelevant tokens are perturbed "
    "hallucinates less than DPO, which leans on spurious tokens.",
    reproduce=reproduce,
    threads=1,
)
