"""SkipDecode at laptop scale: sentences about restaurants, written with ever fewer layers.

An eight-layer transformer learns to turn six attributes into a sentence (word tokens; one of four
patterns, which the first words settle). It is then fine-tuned in several ways, from the same
weights: with all layers; with SkipDecode's falling depth at 1.5, 2 and 3 times the speed; and, at 2
times, with the same budgets spent on the lowest layers (early exit) or with four layers for every
token (static). The prompt runs with the largest budget.
"""

from __future__ import annotations

import copy
import random
from typing import Any

from torch import Tensor

from tokenry.lab.adaptive_compute import exit_early, predicted, restaurant_model
from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import curves
from tokenry.lab.scale import Scale, at
from tokenry.lab.table import Table, over_seeds
from tokenry.learn.recipes.skipdecode import train_on_schedule
from tokenry.model.adaptive.skipdecode import SkipDecode, average_layers, layers_for_speedup
from tokenry.papers.base import Paper
from tokenry.tasks.worlds.restaurants import FIRST_VALUE, PROMPT, SENTENCE, restaurants

LAYERS = 8
SPEEDUPS = (1.5, 2.0, 3.0)
WAYS = {
    "all layers": (LAYERS, LAYERS),
    **{f"SkipDecode, {x:g} x": layers_for_speedup(LAYERS, x) for x in SPEEDUPS},
    "early exit, 2 x": layers_for_speedup(LAYERS, 2.0),
    "static depth, 2 x": (LAYERS // 2, LAYERS // 2),
}


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    seeds, steps, tuning, size, tests = at(scale, full=(4, 160, 50, 32, 400), smoke=(2, 3, 2, 4, 6))
    table, lines = Table(), {}

    def losses(number: int) -> dict[str, Tensor]:
        """Of each way, the mean loss by position."""
        rng = random.Random(number)
        train, tune = ([restaurants(size, rng) for _ in range(n)] for n in (steps, tuning))
        test = restaurants(tests, rng)
        written, slots = test["labels"] != -100, test["labels"] >= FIRST_VALUE
        model, by_position = restaurant_model(train, number, LAYERS), {}
        for way, (most, least) in WAYS.items():
            copied: Any = copy.deepcopy(model)
            schedule = SkipDecode(max_layers=most, min_layers=least, length=SENTENCE)
            attached = schedule.attach(copied)
            if way.startswith("early exit"):
                exit_early(attached)
            rates = {"steps": tuning, "learning_rate": 1e-3}
            train_on_schedule(attached, tune, prompt_columns=PROMPT, **rates)
            options = {"attention_mask": test["attention_mask"], "prompt_columns": PROMPT}
            loss, right = predicted(copied, test["input_ids"], **options)
            mean, whole = loss[written].mean(), (right | ~slots).all(-1).float().mean()
            table.add(f"{way}: loss", float(mean), "nats per token", number)
            table.add(f"{way}: sentences with every slot right", float(whole), "share", number)
            table.add(f"{way}: layers per token", average_layers(schedule.schedule()), "", number)
            by_position[way] = (loss * written).sum(0) / written.sum(0).clamp_min(1)
        return by_position

    for number, by_position in over_seeds(losses, seed, seeds):
        for way, values in by_position.items():
            lines[f"{way} [{number}]"] = enumerate(values[PROMPT:].tolist())
    slow, double, fast = (f"SkipDecode, {x:g} x: loss" for x in SPEEDUPS)
    return verdict(
        table,
        {
            "at 2 x SkipDecode loses less than early exit": table.gap(
                "early exit, 2 x: loss", double
            ),
            "at 2 x less than 1.1 times what all layers lose": table.gap(
                "all layers: loss", double, factor=1 / 1.1
            ),
            "at 1.5 x less than at 2 x": table.gap(double, slow),
            "at 2 x less than at 3 x": table.gap(fast, double),
        },
        plots=[curves(lines, "position in the sentence", "loss (nats)")],
    )


PAPER = Paper(
    number=39,
    key="skipdecode",
    title="SkipDecode: Autoregressive Skip Decoding with Batching and Caching for Efficient LLM "
    "Inference",
    arxiv="2307.02628",
    role="router",
    family="efficiency",
    claim="Depth that falls with the position and keeps the top layers halves the layers run at a "
    "small loss, where early exits lose much, with batches and caches left as they are.",
    reproduce=reproduce,
    threads=1,
)
