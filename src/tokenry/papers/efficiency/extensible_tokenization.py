"""Extensible tokenization at laptop scale: facts that lie beyond a small model's window.

A text states facts, one token for each key and its value, and asks for them: key, value. A model
with a window of 64 tokens learns to look values up, and is frozen. In a text of six chunks of 16
tokens the first two state the facts; the next three ask for one half of them; the last asks for
the other half, whose statements are outside of the window. A tokenizer of one layer learns, at
ratios 2 to 8 in turn, to bring them into it. At the large scale it learns six times as long.
"""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise

import torch

from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import curves
from tokenry.lab.recall import facts_model, loss_behind, loss_from, raw_embeddings, taught_tokenizer
from tokenry.lab.scale import Scale, at
from tokenry.lab.table import Evidence, Table, paired
from tokenry.model.memory.extensible import (
    mean_pool_downscale,
    random_downscale,
    strided_downscale,
)
from tokenry.papers.base import Paper
from tokenry.tasks.worlds.facts import Facts

RATIOS = (2, 4, 8)
FULL = (220, 1200, 256)


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    model_steps, steps, tests = at(
        scale, full=FULL, smoke=(2, 2, 4), large=(FULL[0], 6 * FULL[1], FULL[2])
    )
    world, table = Facts(), Table()
    model = facts_model(world, seed, model_steps)
    generator = torch.Generator().manual_seed(seed + 1000)
    texts = world.long_texts(8 * steps, generator)
    asked = world.long_texts(tests, generator)
    tokenizer = taught_tokenizer(model, world, texts, RATIOS, steps, seed)
    length, guessing = world.chunks * world.chunk, math.log(world.values)
    random = partial(random_downscale, generator=torch.Generator().manual_seed(seed))
    behind, raw = partial(loss_behind, model, world, asked), raw_embeddings(model)
    window = loss_from(model, world, asked, length - world.window)
    losses = {
        "no context": loss_from(model, world, asked, length - world.chunk),
        "truncated to the window": window,
        "beyond the window": loss_from(model, world, asked, 0),
        "random places, 4 tokens each": behind(tokenizer, 4, random),
    }
    means = {k: behind(raw, k, mean_pool_downscale) for k in RATIOS}
    ours = {k: behind(tokenizer, k, strided_downscale) for k in RATIOS}
    losses |= {f"means of embeddings, {k} tokens each": loss for k, loss in means.items()}
    losses |= {f"extensible, {k} tokens each": loss for k, loss in ours.items()}
    table.add("guessing", guessing, "nats per question", seed)
    table.add_all({n: float(x.mean()) for n, x in losses.items()}, "nats per question", seed)
    checks: dict[str, Evidence | bool] = {}
    for k in RATIOS:
        checks[f"{k} tokens each lose less than truncation"] = paired(window, ours[k])
        checks[f"{k} tokens each lose less than guessing"] = paired([guessing] * tests, ours[k])
    for few, many in pairwise(RATIOS):
        checks[f"{many} tokens each lose more than {few}"] = paired(ours[many], ours[few])
    lines = {
        name: [(k, float(loss.mean())) for k, loss in by_ratio.items()]
        for name, by_ratio in (("extensible", ours), ("means of embeddings", means))
    }
    return verdict(
        table,
        checks,
        reason="A tokenizer of one layer, trained briefly on the answers of texts of the same "
        "kind. The model has never read a text without its facts, so the window without them "
        "loses more than guessing does.",
        plots=[curves(lines, "tokens of an embedding", "loss (nats per question)")],
    )


PAPER = Paper(
    number=75,
    key="extensible-tokenization",
    title="Flexibly Scaling LLMs Contexts Through Extensible Tokenization",
    arxiv="2401.07793",
    role="context compressor",
    family="efficiency",
    claim="Embeddings that each stand for k tokens bring context beyond a frozen model's window "
    "into it, at a k chosen when reading.",
    reproduce=reproduce,
    threads=1,
)
