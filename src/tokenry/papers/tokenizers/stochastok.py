"""StochasTok at laptop scale: does splitting tokens in pre-training teach a model their letters?

A small Llama is trained on the docstrings of the standard library, once with ordinary tokens and
once with p = 0.3. Both are then fine-tuned, with ordinary tokens, on LangGame questions over three
quarters of 400 frequent words, and tested on questions about the other quarter, which they met in
pre-training only.
"""

from __future__ import annotations

from typing import Any

from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import curves
from tokenry.lab.scale import Scale, at
from tokenry.lab.subwords import SubwordBench
from tokenry.lab.table import Table, items_above, over_seeds, paired
from tokenry.papers.base import Paper

P, GAIN, COST = 0.3, 0.05, 1.03
FULL = {"pretraining": 250, "fine_tuning": 150, "tests": 300}
LARGE = {"pretraining": 2000, "fine_tuning": 2000, "tests": 1000}
SMOKE = {"pretraining": 2, "fine_tuning": 2, "tests": 6, "batch": 4, "block": 16}


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    """Two seeds, from `100 seed`; at large scale one, with about ten times as many steps."""
    seeds, every, size = at(scale, full=(2, 50, FULL), smoke=(2, 2, SMOKE), large=(1, 500, LARGE))
    table, lines = Table(), {}
    right, loss = {0.0: [], P: []}, {0.0: [], P: []}

    def runs(number: int) -> dict[float, tuple[dict[int, list[float]], Any]]:
        bench = SubwordBench(number, **size)
        models = {p: bench.pretrained(p) for p in (0.0, P)}
        return {p: (bench.fine_tuned(m, every), bench.held_back(m)) for p, m in models.items()}

    for number, pair in over_seeds(runs, seed, seeds):
        for p, (answers, blocks) in pair.items():
            accuracy = {step: sum(flags) / len(flags) for step, flags in answers.items()}
            lines[f"p = {p} [{number}]"] = accuracy.items()
            right[p] += answers[max(answers)]
            loss[p] += blocks.tolist()
            table.add(f"p = {p}, unseen words", accuracy[max(answers)], "accuracy", number)
            table.add(f"p = {p}, held-back text", blocks.mean(), "nats per token", number)
    chance = max(table.mean(f"p = {p}, unseen words") for p in right) < 0.35
    return verdict(
        table,
        {
            "accuracy(p = 0.3) > accuracy(p = 0) + 0.05, over the questions": items_above(
                paired(right[P], right[0.0]).margins, GAIN
            ),
            "loss(p = 0.3) < 1.03 loss(p = 0), over blocks of held-back text": paired(
                (COST * value for value in loss[0.0]), loss[P]
            ),
        },
        reason="neither model is clear of chance, 0.25: the scale is too small to tell"
        if chance
        else None,
        plots=[curves(lines, "fine-tuning step", "accuracy on unseen words")],
    )


PAPER = Paper(
    number=181,
    key="stochastok",
    title="StochasTok: Improving Fine-Grained Subword Understanding in LLMs",
    arxiv="2506.01687",
    role="tokenizer",
    family="tokenizers",
    claim="Splitting tokens at random in pre-training teaches a model the letters of its tokens, "
    "at no cost to ordinary language modelling.",
    reproduce=reproduce,
    threads=1,
)
