"""TVM: token values from shared prefixes against outcome labels, on running maxima.

A question lists five digits; its solution goes through them, a step for each, and writes down the
largest so far. A small transformer is fitted to solutions with slips, about half of which end
right; 48 of its own solutions to each training question teach two value models that differ in
their targets only: the pass rate of every prefix (TVM), or the outcome at every token (ORM). On
other questions they tell right from wrong halfway, and guide a stepwise beam.
"""

from __future__ import annotations

from statistics import fmean

from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import curves
from tokenry.lab.running_maxima import MaximaBench
from tokenry.lab.scale import Scale, at
from tokenry.lab.table import Table, over_seeds
from tokenry.learn.rewards.token_value import prefix_values
from tokenry.measure.ranking import area_under_curve
from tokenry.papers.base import Paper
from tokenry.tasks.worlds.running_maxima import DIGITS, LENGTH

MIDDLE = (DIGITS - 1) // 2
AUC, BEAM = "AUC at the middle step", "accuracy of stepwise beam search"
SAMPLE = "generator: accuracy of a sample"


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    """Seven generators, seeds from `100 seed`."""
    small = {"fit_steps": 2, "trained": 8, "copies": 4, "tested": 16, "steps": 2}
    generators, searched, size = at(scale, full=(7, 60, {}), smoke=(2, 2, small))
    table, lines = Table(), {}

    def judged(number: int) -> tuple[dict[str, float], dict[str, list[float]]]:
        """AUCs and accuracies; and the mean values along right and wrong solutions."""
        bench, prefixes, outcomes = MaximaBench(number, **size), [], []
        for solutions, right in bench.training.by_question():
            for values, outcome in zip(prefix_values(solutions, right), right, strict=True):
                prefixes.append([fmean(right), *values][:-1])  # of what stands before each token
                outcomes.append([outcome] * LENGTH)
        found, paths = {SAMPLE: fmean(bench.test.right)}, {}
        for name, targets in (("tvm", prefixes), ("orm", outcomes)):
            judge = bench.value_model(targets)
            right, wrong = bench.judged(judge)
            for step in range(DIGITS - 1):
                token = min(2 * step + 1, LENGTH - 2)
                label = AUC if step == MIDDLE else f"AUC at step {step + 1}"
                found[f"{name}: {label}"] = area_under_curve(right[:, token], wrong[:, token])
            found[f"{name}: {BEAM}"] = bench.searched(judge, searched)
            paths |= {
                f"{name}, right": right.mean(0).tolist(),
                f"{name}, wrong": wrong.mean(0).tolist(),
            }
        return found, paths

    for number, (found, paths) in over_seeds(judged, seed, generators):
        table.add_all(found, "", number)
        for name, values in paths.items():
            lines[f"{name} [{number}]"] = enumerate(values[:-1], 1)
    return verdict(
        table,
        {
            "halfway TVM's values separate right from wrong solutions better than ORM's (AUC)": (
                table.gap(f"tvm: {AUC}", f"orm: {AUC}")
            ),
            "stepwise beam search with TVM is at least as accurate as with ORM": table.gap(
                f"tvm: {BEAM}", f"orm: {BEAM}"
            ),
            "and with ORM more accurate than a single sample": table.gap(f"orm: {BEAM}", SAMPLE),
        },
        plots=[curves(lines, "tokens of the solution", "mean value")],
    )


PAPER = Paper(
    number=46,
    key="tvm",
    title="Token-Supervised Value Models for Enhancing Mathematical Reasoning Capabilities of "
    "Large Language Models",
    arxiv="2407.12863",
    role="objective",
    family="preference",
    claim="Value models taught the pass rate of every sampled prefix judge partial solutions "
    "better than those taught outcomes, and guide stepwise search better.",
    reproduce=reproduce,
    threads=1,
)
