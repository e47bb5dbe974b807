"""Duo-LLM at laptop scale: what an oracle would do with big and small feed-forward blocks.

A byte-level transformer of four layers, every feed-forward block once with 256 and once with 16
inner units, is trained on the standard library's source under random routes. On held-out source
all 16 routes of every byte are compared: the best for each number of big blocks (it knows the
byte), the mean one, fixed patterns, routers that were trained for that number, and two controls of
what a minimum over many routes gains by chance.
"""

from __future__ import annotations

import random

from tokenry.lab.adaptive_compute import kinds_of_bytes, losses_of_choices, routed
from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import curves
from tokenry.lab.scale import Scale, at
from tokenry.lab.table import Table, over_seeds
from tokenry.lab.toy_model import toy_model
from tokenry.learn.recipes.dual_ffn import train_random_routes, train_routers
from tokenry.model.adaptive.dual_ffn import DuoLLM, RouteLosses, oracle_routes, token_difficulty
from tokenry.papers.base import Paper
from tokenry.tasks.standard_library import byte_pieces, shuffled

LAYERS, LENGTH = 4, 64
HELP = "gain of big over small blocks"


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    seeds, steps, router_steps, size, tests = at(
        scale, full=(4, 240, 40, 24, 64), smoke=(2, 2, 2, 2, 8)
    )
    table, between = Table(), range(1, LAYERS)

    def measure(number: int) -> RouteLosses:
        rng = random.Random(number)
        source = shuffled(rng, least=2 * LENGTH)
        cut = len(source) // 5
        batches = [byte_pieces(source[cut:], LENGTH, size, rng) for _ in range(steps)]
        test = byte_pieces(source[:cut], LENGTH, tests, rng)
        model = toy_model(256, LENGTH, number, width=64, inner=256, layers=LAYERS)
        attached = DuoLLM(inner=16, seed=number).attach(model)
        train_random_routes(attached, batches, steps=steps, learning_rate=3e-3, seed=number)
        model.eval()
        losses = oracle_routes(attached, test)
        for budget in range(LAYERS + 1):
            for way, loss in losses_of_choices(losses, budget).items():
                value = float(losses.mean(loss))
                table.add(f"{way}, {budget} big", value, "nats per byte", number)
        for budget in between:
            train_routers(attached, batches, budget=budget, steps=router_steps)
            loss, big = routed(attached, test)
            table.add(f"routers, {budget} big", float(losses.mean(loss)), "nats per byte", number)
            table.add(f"big blocks that the routers trained for {budget} take", big, "", number)
        small, whole = (losses.of_budget(budget)[0] for budget in (0, LAYERS))
        difficulty = token_difficulty(losses.loss[..., small], losses.loss[..., whole])
        for kind, chosen in kinds_of_bytes(test).items():
            table.add(f"{HELP}, {kind}", float(difficulty[chosen].mean()), "nats per byte", number)
        return losses

    lines, checks = {}, {}
    for number, losses in over_seeds(measure, seed, seeds):
        for budget in between:
            lines[f"{budget} big [{number}]"] = enumerate(losses.usage(budget).tolist())
    label = "the oracle loses less with one big block than all big ones do"
    checks[label] = table.gap(f"oracle, {LAYERS} big", "oracle, 1 big")
    for budget in between:
        oracle, routers, chance = (f"{w}, {budget} big" for w in ("oracle", "routers", "random"))
        checks[f"with {budget} big it loses less than routers"] = table.gap(routers, oracle)
        label = f"and these at most 0.02 more than random routes with {budget}"
        checks[label] = table.gap(chance, routers, by=-0.02)
    label = "big blocks help more at the first byte of a name than at a blank after a blank"
    checks[label] = table.gap(f"{HELP}, first byte of a name", f"{HELP}, blank after a blank")
    ways = ("oracle", "minimum by chance", "smallest entropy", "random")
    means = {w: [(b, table.mean(f"{w}, {b} big")) for b in range(LAYERS + 1)] for w in ways}
    return verdict(
        table,
        checks,
        reason="The oracle knows the byte. As many unrelated losses of the same spread would have "
        "the minimum by chance, and the route that is surest of itself uses no answer.",
        plots=[
            curves(means, "big blocks per byte", "loss (nats per byte)"),
            curves(lines, "layer", "how often the oracle's block is big"),
        ],
    )


PAPER = Paper(
    number=42,
    key="duo-llm",
    title="Duo-LLM: A Framework for Studying Adaptive Computation in Large Language Models",
    arxiv="2410.10846",
    role="router",
    family="efficiency",
    claim="An oracle that picks one big block per token beats the model with all of them, far from "
    "what trained routers reach, which stay near fixed patterns.",
    reproduce=reproduce,
    threads=1,
)
