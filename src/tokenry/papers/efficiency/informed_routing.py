"""Informed routing at laptop scale: which tokens of SmolLM2 can do without a unit, and how.

Every attention and feed-forward unit gets a linear forecaster of rank 64, fitted in closed form to
24 sequences of 128 tokens of the standard library's source. On other sequences a share of the
tokens, chosen for each unit anew, does not run it. No router is trained: the rules compared are
what a router can aim at (the tokens with the smallest forecasting error, or with the smallest
update) and chance; what is left out is forecast or skipped.
"""

import random
import sysconfig
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenry.learn.recipes.informed_routing import fit_forecasters
from tokenry.learn.recipes.language_loss import language_loss
from tokenry.model.adaptive.informed_routing import AttachedRouting, InformedRouting
from tokenry.model.adaptive.routing_report import UnitReport, routing_report
from tokenry.model.adaptive.routing_rules import Lowest
from tokenry.papers.base import Measurement, Outcome, Paper

LENGTH, TRAINING, HELD_OUT, BATCH = 128, 24, 4, 8
RANK = 64
SHARES = (0.1, 0.25, 0.4)
RULES = {
    "random, skipped": ("random", "skip"),
    "random, forecast": ("random", "approximate"),
    "smallest forecasting error, forecast": ("error", "approximate"),
    "smallest update, skipped": ("update", "skip"),
    "smallest update, forecast": ("update", "approximate"),
}

Losses = dict[tuple[str, float], float]
"""(rule, share of tokens that do not run a unit) -> nats per token."""


def reproduce(seed: int) -> Outcome:
    import tokenry

    model, tokenizer = tokenry.load("smollm2")
    ids = sequences(tokenizer, seed)
    with InformedRouting(rank=RANK, activation="identity").attach(model) as attached:
        fit_forecasters(attached, ids[:TRAINING].split(BATCH))
        dense, loss, report = measure(attached, ids[TRAINING:], seed)
        saved = attached.flops_saved([0.75] * len(attached.units), LENGTH // 2)
    quality = {
        kind: sum(unit.r2 for unit in report if unit.kind == kind) / (len(report) // 2)
        for kind in ("attention", "mlp")
    }
    measurements = [Measurement("every unit runs", dense, "nats per token", seed)]
    measurements += [
        Measurement(f"{rule}, {share:.0%} of the tokens", value, "nats per token", seed)
        for (rule, share), value in loss.items()
    ]
    measurements += [
        Measurement(f"variance forecast, {kind}", value, "R²", seed)
        for kind, value in quality.items()
    ]
    measurements.append(
        Measurement(
            "FLOPs of the units saved at 25 %, routers and forecasters paid", saved.saved, "share"
        )
    )
    skip, forecast, oracle, small_skip, small = (loss[rule, 0.25] for rule in RULES)
    held = oracle < small < small_skip and forecast < skip
    return Outcome(
        held=held,
        needs="with 25 % of the tokens left out of each unit: loss(smallest error, forecast) < "
        "loss(smallest update, forecast) < loss(smallest update, skipped), and loss(random, "
        "forecast) < loss(random, skipped)",
        measurements=measurements,
        reason=f"No router is trained: the rule by error is an oracle, which a router approaches. "
        f"It costs {oracle - dense:.2f} nats at 25 %, random tokens {forecast - dense:.2f} when "
        f"forecast and {skip - dense:.2f} when skipped. Forecasters explain "
        f"{quality['attention']:.0%} of the variance of attention and {quality['mlp']:.0%} of that "
        "of feed-forward blocks"
        + (
            "; the paper finds attention the more predictable."
            if quality["attention"] < quality["mlp"]
            else ", the order that the paper finds."
        ),
        figure=lambda figure: draw(figure, dense, loss, report),
    )


@torch.no_grad()
def measure(
    attached: AttachedRouting, ids: Tensor, seed: int
) -> tuple[float, Losses, list[UnitReport]]:
    """Loss with all units, under each rule and share, and how well each unit is forecast."""
    dense = float(language_loss(attached.model, ids))
    found: Losses = {}
    for share in SHARES:
        for rule, (by, mode) in RULES.items():
            generator = torch.Generator().manual_seed(seed)
            with attached.using(Lowest(by, share, generator), mode):
                found[rule, share] = float(language_loss(attached.model, ids))
    return dense, found, routing_report(attached, [ids])


def sequences(tokenizer: Any, seed: int) -> Tensor:
    """Source of the standard library, each from another module: [TRAINING + HELD_OUT, LENGTH]."""
    generator = random.Random(seed)
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    generator.shuffle(files)
    rows = []
    for file in files:
        text = file.read_text("utf-8")
        start = text.find("\n", generator.randrange(max(len(text) - 10 * LENGTH, 1))) + 1
        ids = tokenizer(text[start : start + 10 * LENGTH])["input_ids"]
        if len(ids) >= LENGTH:
            rows.append(ids[:LENGTH])
        if len(rows) == TRAINING + HELD_OUT:
            break
    return torch.tensor(rows)


def draw(figure: Any, dense: float, loss: Losses, report: list[UnitReport]) -> None:
    left, right = figure.subplots(1, 2)
    for rule in RULES:
        values = [dense, *(loss[rule, share] for share in SHARES)]
        left.plot([0, *SHARES], values, marker="o", label=rule)
    left.set(xlabel="share of tokens that do not run a unit", ylabel="loss (nats per token)")
    left.legend(fontsize="small")
    for kind in ("attention", "mlp"):
        units = [unit for unit in report if unit.kind == kind]
        shift = -0.2 if kind == "attention" else 0.2
        places = [unit.layer + shift for unit in units]
        right.bar(places, [unit.r2 for unit in units], width=0.4, label=kind)
    right.set(xlabel="layer", ylabel="R² of the forecaster")
    right.legend()


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
