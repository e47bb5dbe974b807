"""MEET: do controls that are learned before the model carry more than those learned with it?

A small transformer fitted to a mixture of styles (polite, neutral, rude); 300 pairs, of which the
preferred text tends to hold more polite tokens, make 300 good and 300 bad points. At equal steps,
each with the better of two learning rates of the model, by control gap:

    text       one stage, ordinary tokens as control text before the sequence
    one stage  soft prompts and model trained together
    MEET       soft prompts alone for half of the steps, then both
"""

from __future__ import annotations

import copy
from typing import Any

from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import curves
from tokenry.lab.scale import Scale, at
from tokenry.lab.styles import ControlPoint, StyleBench
from tokenry.lab.table import Table, over_seeds
from tokenry.lab.toy_training import NegativeLogLikelihood
from tokenry.learn.preference.meet import MEET, ControlPrompts
from tokenry.papers.base import Paper

LENGTH = 8  # tokens of a control
MODEL_RATES, CONTROL_RATE = (1e-4, 5e-4), 1e-2
METHODS = ("text", "one stage", "MEET")


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    """Six languages, seeds from `100 seed`."""
    languages, steps, size = at(
        scale,
        full=(6, 240, {}),
        smoke=(2, 4, {"pairs": 6, "fit_steps": 2, "samples": 16}),
    )

    def trained(number: int) -> dict[tuple[str, float], list[ControlPoint]]:
        bench, half = StyleBench(number, length=LENGTH, **size), steps // 2
        options: dict[str, Any] = {"decay": 0.3, "every": half}
        alone = ControlPrompts.of(bench.model, 2, LENGTH, seed=number)
        given = {"learning_rate": CONTROL_RATE, "steps": half, "seed": number}
        _, first = bench.train(MEET(1, LENGTH), bench.model, alone, **given, **options)
        runs = {}
        for rate in MODEL_RATES:
            options |= {"learning_rate": rate, "modules_rate": CONTROL_RATE}
            fresh = ControlPrompts.of(bench.model, 2, LENGTH, seed=number)
            for name, objective, modules in (
                ("text", NegativeLogLikelihood(), None),
                ("one stage", MEET(2, LENGTH), fresh),
            ):
                run = bench.train(
                    objective, bench.model, modules, steps=steps, seed=number, **options
                )
                runs[name, rate] = run[1]
            rest = {"steps": steps - half, "seed": number + 1, **options}
            _, second = bench.train(MEET(2, LENGTH), bench.model, copy.deepcopy(alone), **rest)
            later = [point._replace(step=point.step + half) for point in second[1:]]
            runs["MEET", rate] = first + later
        return runs

    table, lines = Table(), {}
    for number, runs in over_seeds(trained, seed, languages):
        for name in METHODS:
            best = max((runs[name, rate][-1] for rate in MODEL_RATES), key=lambda p: p.gap)
            values = {"control gap": best.gap, "under good": best.good, "under bad": best.bad}
            table.add_all(values, "polite tokens", number, name)
        for (name, rate), points in runs.items():
            lines[f"{name}, rate {rate:g} [{number}]"] = [(p.step, p.gap) for p in points]
        before, halfway, *_ = runs["MEET", MODEL_RATES[0]]
        values = {"gap after stage 1": halfway.gap, "reward before": before.good}
        table.add_all(values, "polite tokens", number, "MEET")
    return verdict(
        table,
        {
            f"at equal steps, each method at its better learning rate, MEET's {what} is {relation} "
            f"that of {name}": table.gap(f"MEET: {what}", f"{name}: {what}")
            for what, relation in (("control gap", "above"), ("under good", "not below"))
            for name in METHODS[:2]
        },
        reason="a small model that is trained in full learns to condition on any control, also on "
        "one without meaning of its own: the large model's neglect of it does not show here",
        plots=[curves(lines, "step", "control gap, polite tokens per sequence")],
    )


PAPER = Paper(
    number=133,
    key="meet",
    title="Parameter-Efficient Tuning Helps Language Model Alignment",
    arxiv="2310.00819",
    role="objective",
    family="preference",
    claim="Learning soft prompts for good and bad answers on the frozen model first, and the model "
    "with them afterwards, makes them stronger controls than training everything at once.",
    reproduce=reproduce,
    threads=1,
)
