"""H2O at laptop scale: how much of its cache SmolLM2 needs to read module documentation.

Passages of 512 tokens; the first 384 are the prompt, the last 128 are scored, teacher-forced, under
caches of a tenth to two fifths of the prompt. Every policy gets the same number of keys, shares one
prefill, and evicts as it would one token at a time. H2O, and random keys in place of its heavy
hitters, spend half of it on recent tokens, as the paper does.
"""

from __future__ import annotations

import torch

from tokenry.lab.models import language_model
from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import curves
from tokenry.lab.prompt_policies import prefilled
from tokenry.lab.scale import Scale, at
from tokenry.lab.table import Table, paired
from tokenry.model.cache.h2o import H2O
from tokenry.papers.base import Paper
from tokenry.tasks.documentation import passages

SHARES = (0.1, 0.2, 0.4)
SINKS = 4


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    count, prompt, scored = at(scale, full=(7, 384, 128), smoke=(2, 40, 6))
    model, tokenizer = language_model(scale)
    ids, table = passages(tokenizer, prompt + scored, count, seed), Table()
    text, losses = ids[:, prompt:], {}
    with prefilled(model, ids[:, :prompt]) as read:
        for share in SHARES:
            budget = int(share * prompt)
            half = budget // 2
            kept = H2O(heavy=half, recent=budget - half)
            sinks = H2O(heavy=SINKS, recent=budget - SINKS)
            losses["h2o", share] = read.under(text, kept)
            losses["window", share] = read.under(text, H2O(heavy=0, recent=budget))
            losses["sinks + window", share] = read.under(text, sinks, "earliest")
            losses["random", share] = read.under(text, kept, "random", seed)
        full = read.under(text, H2O(heavy=0, recent=prompt + scored))
        received = torch.stack(read.shared.scores()).sort(-1, descending=True).values

    table.add("full cache", float(full.mean()), "nats per token", seed)
    lines: dict[str, list[tuple[float, float]]] = {}
    for (name, share), loss in losses.items():
        table.add(f"{name}, {share:.0%} of the cache", float(loss.mean()), "nats per token", seed)
        lines.setdefault(name, []).append((share, float((loss - full).mean())))
    top = float((received[..., : prompt // 10].sum(-1) / received.sum(-1)).mean())
    table.add("attention on the top tenth of the keys", top, "share", seed)
    h2o, window, random = (losses[name, 0.2].mean(1) for name in ("h2o", "window", "random"))
    spectrum = enumerate(received.mean((0, 1, 2)).tolist(), 1)
    return verdict(
        table,
        {
            "with a fifth of the cache H2O loses less than a window of its size": paired(
                window, h2o
            ),
            "and less than random keys": paired(random, h2o),
        },
        reason=f"The paper does not compare with {SINKS} attention sinks and a window.",
        plots=[
            curves(lines, "share of the prompt's cache", "loss over the full cache (nats)"),
            curves({"keys": spectrum}, "rank of the key", "attention received", log="xy"),
        ],
    )


PAPER = Paper(
    number=81,
    key="h2o",
    title="H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models",
    arxiv="2306.14048",
    role="cache policy",
    family="efficiency",
    claim="A fifth of the cache, half heavy hitters and half recent tokens, loses far less than a "
    "window of the same size.",
    reproduce=reproduce,
)
