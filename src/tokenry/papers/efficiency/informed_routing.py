"""Informed routing at laptop scale: which tokens of SmolLM2 can do without a unit, and how.

Every attention and feed-forward unit gets a linear forecaster of rank 64, fitted in closed form to
24 sequences of 128 tokens of the standard library's source. On other sequences a share of the
tokens, chosen for each unit anew, does not run it. No router is trained: the rules compared are
what a router can aim at (the tokens with the smallest forecasting error, or with the smallest
update) and chance; what is left out is forecast or skipped.
"""

from __future__ import annotations

from statistics import fmean

import torch

from tokenry.lab.adaptive_compute import predicted
from tokenry.lab.models import language_model
from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import bars, curves
from tokenry.lab.scale import Scale, at
from tokenry.lab.table import Table, paired
from tokenry.learn.recipes.informed_routing import fit_forecasters
from tokenry.model.adaptive.informed_routing import InformedRouting
from tokenry.model.adaptive.routing_report import routing_report
from tokenry.model.adaptive.routing_rules import Lowest
from tokenry.papers.base import Paper
from tokenry.tasks.standard_library import token_pieces

SHARES, JUDGED = (0.1, 0.25, 0.4), 0.25
RULES = {
    "random, skipped": ("random", "skip"),
    "random, forecast": ("random", "approximate"),
    "smallest forecasting error, forecast": ("error", "approximate"),
    "smallest update, skipped": ("update", "skip"),
    "smallest update, forecast": ("update", "approximate"),
}


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    rank, length, training, batch, tests = at(
        scale, full=(64, 128, 24, 8, 8), smoke=(4, 24, 4, 2, 2)
    )
    model, tokenizer = language_model(scale)
    ids = token_pieces(tokenizer, length, training + tests, seed)
    taught, judged, table, losses = ids[:training], ids[training:], Table(), {}
    with InformedRouting(rank=rank, activation="identity").attach(model) as attached:
        fit_forecasters(attached, taught.split(batch))
        dense = predicted(attached.model, judged)[0][:, 1:]  # [sequences, tokens]
        for share in SHARES:
            for rule, (by, mode) in RULES.items():
                generator = torch.Generator().manual_seed(seed)
                with attached.using(Lowest(by, share, generator), mode):
                    losses[rule, share] = predicted(attached.model, judged)[0][:, 1:]
        report = routing_report(attached, [judged])
        saved = attached.flops_saved([1 - JUDGED] * len(attached.units), length // 2).saved
    table.add("every unit runs", float(dense.mean()), "nats per token", seed)
    for (rule, share), loss in losses.items():
        label = f"{rule}, {share:.0%} of the tokens"
        table.add(label, float(loss.mean()), "nats per token", seed)
    kinds = {k: {str(u.layer): u.r2 for u in report if u.kind == k} for k in ("attention", "mlp")}
    for kind, layers in kinds.items():
        table.add(f"variance forecast, {kind}", fmean(layers.values()), "R²", seed)
    label = f"FLOPs of the units saved at {JUDGED:.0%}, routers and forecasters paid"
    table.add(label, saved, "share")
    lines = {r: [(s, float(losses[r, s].mean() - dense.mean())) for s in SHARES] for r in RULES}
    skip, forecast, error, update_skip, update = (losses[rule, JUDGED].mean(1) for rule in RULES)
    return verdict(
        table,
        {
            f"without {JUDGED:.0%} of the tokens in each unit, those with the smallest forecasting "
            "error lose less, forecast, than those with the smallest update": paired(update, error),
            "and these less when they are forecast than when they are skipped": paired(
                update_skip, update
            ),
            "random tokens lose less when they are forecast": paired(skip, forecast),
        },
        reason="No router is trained: the rule by error is an oracle, which a router approaches. "
        "The paper finds attention the more predictable of the two kinds of units.",
        plots=[
            curves(lines, "share of tokens that do not run a unit", "loss over all units (nats)"),
            bars(kinds, "R² of the forecaster", "layer"),
        ],
    )


PAPER = Paper(
    number=140,
    key="informed-routing",
    title="Informed Routing in LLMs: Smarter Token-Level Computation for Faster Inference",
    arxiv="2510.13831",
    role="router",
    family="efficiency",
    claim="Leaving units out for the tokens whose outputs a small forecaster reproduces, and using "
    "its forecast, costs far less than skipping the tokens that seem least important.",
    reproduce=reproduce,
    threads=1,
)
