"""FSPAD at laptop scale: draft heads for a small character model of Python's standard library.

Three heads learn from the same texts, half of which the model wrote at temperature 1 and half
greedily: EAGLE's, the same with feature sampling, and with partial alignment too. EAGLE's has a
wider feed-forward block, for as many weights. Judged is how many of four chained guesses come true
behind every place of further texts that the model wrote, sampled and greedy: that is what
verification accepts, since the model's next token is drawn first and then compared with the guess.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokenry.decode.speculation.fspad import FSPAD
from tokenry.lab.draft_heads import chain_acceptance, writer
from tokenry.lab.drafting import alike, redrafted
from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import curves
from tokenry.lab.scale import Scale, at
from tokenry.lab.table import Evidence, Table, paired
from tokenry.learn.recipes.draft_heads import Schedule
from tokenry.learn.recipes.fspad import train_feature_head
from tokenry.model.heads.fspad import FeatureHead
from tokenry.papers.base import Paper
from tokenry.tasks.standard_library import LibraryText

MODULES = ("argparse", "collections", "csv", "datetime", "inspect", "logging", "pathlib", "shutil")
WIDTH, INNER, EXPANSION, DEPTH = 96, 192, 2, 4
SAMPLER, BRANCH = 3 * EXPANSION * WIDTH * WIDTH, WIDTH * WIDTH  # weights of the two parts
KINDS: dict[str, dict[str, Any]] = {
    "EAGLE": {"feature_sampling": False, "partial_alignment": False,
              "inner": INNER + (SAMPLER + BRANCH) // (3 * WIDTH)},
    "feature sampling": {"partial_alignment": False, "inner": INNER + BRANCH // (3 * WIDTH)},
    "feature sampling + partial alignment": {"inner": INNER},
}  # fmt: skip


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    fitting, steps, taught, tests, world = at(
        scale,
        full=({"steps": 220, "batch_size": 16}, 250, 96, 128, LibraryText(MODULES)),
        smoke=({"steps": 20, "batch_size": 4}, 2, 4, 3, LibraryText(MODULES[2:3], 24, 8)),
    )
    own = writer(world, seed, width=WIDTH, **fitting)
    generator = torch.Generator().manual_seed(seed)
    texts = torch.cat([own.write(taught, generator, greedy=greedy) for greedy in (True, False)])
    judged = {kind: own.write(tests, generator, greedy=kind == "greedy")
              for kind in ("temperature 1", "greedy")}  # fmt: skip
    said = [[at >= world.start for at in range(world.length)]] * len(texts)
    schedule = Schedule(steps, 10, world.length, learning_rate=2e-3, warm_up=20)
    plain = [(row[: world.start], row[world.start :]) for row in judged["greedy"][:3].tolist()]
    table, accepted, same = Table(), dict[tuple[str, str], Tensor](), True
    for name, options in KINDS.items():
        head = FeatureHead.of(own.model, seed, heads=4, expansion=EXPANSION, **options)
        train_feature_head(own.model, texts.tolist(), targets=said, head=head, schedule=schedule)
        weights = sum(weight.numel() for weight in head.parameters())
        table.add(f"{name}: weights", weights, "weights", seed)
        for kind, rows in judged.items():
            rates = chain_acceptance(own.model, head, rows, DEPTH, world.start)
            accepted[name, kind] = rates
            table.add(f"{name}, {kind}", float(rates.sum(1).mean()), "accepted of 4", seed)
        drafter = FSPAD(head, nodes=DEPTH, depth=DEPTH, breadth=1)
        same = same and alike(redrafted(own.model, plain, drafter), plain)

    def more(kind: str, by: float = 0.0) -> Evidence:
        eagle, *_, ours = (accepted[name, kind].sum(1) for name in KINDS)
        return paired((ours + by).tolist(), eagle.tolist())

    def lines(kind: str) -> dict[str, Any]:
        return {name: enumerate(accepted[name, kind].mean(0).tolist(), 1) for name in KINDS}

    return verdict(
        table,
        {
            "greedy texts are those of plain decoding": same,
            "at temperature 1 more guesses are accepted than EAGLE's": more("temperature 1"),
            "in greedy texts not fewer by a hundredth": more("greedy", by=0.01),
        },
        reason="The formulas are reconstructed from the paper's description.",
        plots=[curves(lines(kind), "guess", f"share that came true, {kind}") for kind in judged],
    )


PAPER = Paper(
    number=91,
    key="fspad",
    title="Boosting Lossless Speculative Decoding via Feature Sampling and Partial Alignment "
    "Distillation",
    arxiv="2408.15562",
    role="drafter",
    family="efficiency",
    claim="A draft head whose input token selects from the target's feature, and whose logits "
    "leave the feature by a branch of their own, gets more guesses accepted than EAGLE's.",
    reproduce=reproduce,
    threads=1,
)
