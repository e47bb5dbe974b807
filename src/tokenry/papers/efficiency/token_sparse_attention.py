"""Token-sparse attention at laptop scale: what SmolLM2 loses when heads skip tokens of a prompt.

Passages of module documentation; the half of the layers that changes its hidden states least is
made sparse. For each coverage tau, the divergence of the next-token distribution from that of dense
attention over the last positions, against random sets of the same sizes, and against evicting: the
first sparse layer chooses one set for all heads and all later sparse layers, with as many
query-key pairs in all.
"""

from __future__ import annotations

from statistics import fmean
from typing import Any

import torch

from tokenry.lab.models import language_model
from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import curves
from tokenry.lab.prompt_policies import Eviction, RandomSets, Remembered, mean_kl, tail_logprobs
from tokenry.lab.scale import Scale, at
from tokenry.lab.table import Table, paired
from tokenry.model.attention.drift import low_drift_layers
from tokenry.papers.base import Paper
from tokenry.tasks.documentation import passages

WAYS = ("token-sparse", "random sets", "eviction")


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    count, length, scored, window, least, taus = at(
        scale, full=(6, 512, 32, 32, 64, (0.05, 0.2, 0.4)), smoke=(2, 48, 8, 8, 4, (0.2, 0.4))
    )
    model, tokenizer = language_model(scale)
    generator, table = torch.Generator().manual_seed(seed), Table()
    settings = [(way, tau) for way in WAYS for tau in taus]
    kl, share = ({setting: list[float]() for setting in settings} for _ in range(2))
    again: list[float] = []
    for text in passages(tokenizer, length, count, seed).split(1):
        layers = low_drift_layers(model, text)
        dense = tail_logprobs(model, text, scored)
        for tau in taus:
            options: dict[str, Any] = {"layers": layers, "window": window, "min_tokens": least}
            ours = Remembered(tau=tau, **options)
            for way in WAYS:
                policy, sizes = ours, ours.sizes(length)
                if way == "random sets":
                    policy = RandomSets(tau=tau, sizes=sizes, generator=generator, **options)
                elif way == "eviction":
                    size = round((sum(n * n for n in sizes) / len(sizes)) ** 0.5)
                    policy = Eviction(tau=tau, size=size, **options)
                with policy.on(model) as prefill:
                    kl[way, tau].append(mean_kl(dense, tail_logprobs(model, text, scored)))
                pairs = [(int(n) / length) ** 2 for n in prefill.cost.attended.values()]
                share[way, tau].append((sum(pairs) + len(layers) - len(pairs)) / len(layers))
            again.append(ours.read_again(length))
    for way, tau in settings:
        table.add(f"KL to dense, {way}, tau {tau}", fmean(kl[way, tau]), "nats", seed)
        pairs = fmean(share[way, tau])
        table.add(f"query-key pairs, {way}, tau {tau}", pairs, "of dense", seed)
    label = "tokens dropped by a head that a later layer reads again"
    table.add(label, fmean(again), "share", seed)
    lines = {way: [(fmean(share[way, tau]), fmean(kl[way, tau])) for tau in taus] for way in WAYS}
    return verdict(
        table,
        {
            f"at tau {tau} random sets of the same sizes are farther from dense": paired(
                kl["random sets", tau], kl["token-sparse", tau]
            )
            for tau in taus
        },
        reason="A token that a head does not select loses that head's output, which on short texts "
        "costs much. The paper's speed-up (3.2x at 128K tokens) is not measured here.",
        plots=[curves(lines, "query-key pairs in sparse layers, of dense", "KL to dense (nats)")],
    )


PAPER = Paper(
    number=24,
    key="token-sparse-attention",
    title="Token Sparse Attention: Efficient Long-Context Inference with Interleaved Token "
    "Selection",
    arxiv="2602.03216",
    role="attention",
    family="efficiency",
    claim="Heads that read a prompt only among tokens they select, anew in every layer, cut "
    "attention's cost and lose less than one percent.",
    reproduce=reproduce,
    threads=1,
)
