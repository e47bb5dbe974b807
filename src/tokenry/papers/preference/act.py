"""ACT on synthetic entity typing: what checkable constraints teach without labels.

A small transformer is fine-tuned on 40 labelled examples; for 600 unlabelled inputs it samples 6
answers each, which are rated by three constraints: all labels known, closed upwards in the
hierarchy, at most 3 of them. The control has the same samples with their rates shuffled.
"""

from __future__ import annotations

from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import curves
from tokenry.lab.rated_answers import RatedAnswers, TypingPoint
from tokenry.lab.scale import Scale, at
from tokenry.lab.table import Table, over_seeds
from tokenry.learn.preference.act import ACT
from tokenry.papers.base import Paper
from tokenry.tasks.worlds.entity_typing import EntityTyping


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    """Four tasks, seeds from `100 seed`."""
    tasks, size = at(
        scale,
        full=(4, {}),
        smoke=(2, {"prompts": 16, "held_out": 8, "tune_steps": 2, "steps": 2, "every": 1}),
    )

    def trained(number: int) -> dict[str, list[TypingPoint]]:
        bench = RatedAnswers(EntityTyping(number), **size)
        return {
            "act": bench.train(ACT(), learning_rate=5e-4),
            "shuffled": bench.train(ACT(), learning_rate=5e-4, shuffled=True),
        }

    table, lines = Table(), {}
    for number, runs in over_seeds(trained, seed, tasks):
        start, ends = runs["act"][0], {name: points[-1] for name, points in runs.items()}
        for name, point in {"sft": start, **ends}.items():
            values = {"CSR": point.csr, "micro-F1": point.f1, "rise of CSR": point.csr - start.csr}
            table.add_all(values, "", number, name)
        for name, points in runs.items():
            lines[f"{name} [{number}]"] = [(point.step, point.csr) for point in points]
    return verdict(
        table,
        {
            "ACT's constraint satisfaction of sampled answers is at least 10 points above that of "
            "the model fine-tuned on 40 labels": table.above("act: rise of CSR", 0.1),
            "its micro-F1 is not below": table.gap("act: micro-F1", "sft: micro-F1"),
            "shuffled rates give less than half of the rise": table.gap(
                "act: rise of CSR", "shuffled: rise of CSR", factor=2.0
            ),
        },
        plots=[curves(lines, "step", "constraint satisfaction rate")],
    )


PAPER = Paper(
    number=9,
    key="act",
    title="From Instructions to Constraints: Language Model Alignment with Automatic Constraint "
    "Verification",
    arxiv="2403.06326",
    role="objective",
    family="preference",
    claim="Ranking sampled answers by the share of checkable constraints that they satisfy raises "
    "constraint satisfaction and task quality without labels.",
    reproduce=reproduce,
    threads=1,
)
