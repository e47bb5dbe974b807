"""Duo-LLM at laptop scale: what an oracle would do with big and small feed-forward blocks.

A byte-level transformer of four layers, every feed-forward block once with 256 and once with 16
inner units, is trained on the standard library's source under random routes. On held-out source
all 16 routes of every byte are compared: the best for each number of big blocks (it knows the
byte), the mean one, fixed patterns, routers that were trained for that number, and two controls of
what a minimum over many routes gains by chance.
"""

import random
import sysconfig
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenry.lab.toy_model import toy_model
from tokenry.learn.recipes.dual_ffn import train_random_routes, train_routers
from tokenry.model.adaptive.dual_ffn import (
    BIG,
    SMALL,
    AttachedDuo,
    DuoLLM,
    RouteLosses,
    oracle_routes,
    token_difficulty,
)
from tokenry.papers.base import Measurement, Outcome, Paper

LAYERS, WIDTH, INNER, SMALL_INNER = 4, 64, 256, 16
LENGTH, BATCH = 64, 24
STEPS, RATE, ROUTER_STEPS = 600, 3e-3, 80
TESTS = 64

Table = dict[str, list[float]]
"""what chooses the route -> nats per byte for 0 .. LAYERS big blocks."""


def reproduce(seed: int) -> Outcome:
    rng = random.Random(seed)
    source = modules(rng)
    cut = len(source) // 5
    batches = [pieces(source[cut:], BATCH, rng) for _ in range(STEPS)]
    test = pieces(source[:cut], TESTS, rng)
    model = toy_model(256, LENGTH, seed, width=WIDTH, inner=INNER, layers=LAYERS)
    attached = DuoLLM(inner=SMALL_INNER, seed=seed).attach(model)
    train_random_routes(attached, batches, steps=STEPS, learning_rate=RATE, seed=seed)
    model.eval()
    losses = oracle_routes(attached, test)
    table = by_budget(losses)
    table["routers"], used = [], []
    for budget in range(1, LAYERS):
        train_routers(attached, batches, budget=budget, steps=ROUTER_STEPS)
        loss, big = routed(attached, test)
        table["routers"].append(loss)
        used.append(big)
    difficulty = by_kind(losses, test)

    measurements = [
        Measurement(f"{label}, {number} big", value, "nats per byte", seed)
        for label, values in table.items()
        for number, value in enumerate(values, start=int(label == "routers"))
    ]
    measurements += [
        Measurement(f"big blocks that the routers trained for {budget} take", value, "", seed)
        for budget, value in enumerate(used, start=1)
    ]
    measurements += [
        Measurement(f"gain of big over small blocks, {kind}", value, "nats per byte", seed)
        for kind, value in difficulty.items()
    ]
    dense = table["oracle"][LAYERS]
    inner = range(1, LAYERS)
    conditions = {
        "one big block with an oracle is not better than all": table["oracle"][1] < dense,
        "the oracle does not beat the routers": all(
            table["oracle"][b] < table["routers"][b - 1] for b in inner
        ),
        "the routers are worse than random routes": all(
            table["routers"][b - 1] <= table["random"][b] + 0.02 for b in inner
        ),
        "starts of names do not gain more than blanks": difficulty["first byte of a name"]
        > difficulty["blank after a blank"],
    }
    failed = [text for text, good in conditions.items() if not good]
    return Outcome(
        held=not failed,
        needs="loss(oracle, 1 big) < loss(all big); for 1 to 3 big: loss(oracle) < loss(routers) "
        "<= loss(random) + 0.02; big blocks gain more at the first byte of a name than at a blank "
        "after a blank",
        measurements=measurements,
        reason=f"With one big block the oracle has {table['oracle'][1]:.3f} nats, all big "
        f"{dense:.3f}. The oracle knows the byte: as many unrelated losses of the same spread "
        f"would have a minimum of {table['minimum by chance'][1]:.3f}, and the route that is "
        f"surest of itself has {table['smallest entropy'][1]:.3f}"
        + "".join(f"; {text}" for text in failed),
        figure=lambda figure: draw(figure, table, losses),
    )


def by_budget(losses: RouteLosses) -> Table:
    """Mean losses by the number of big blocks."""
    order = torch.arange(LAYERS)
    table: Table = {"oracle": [], "minimum by chance": [], "smallest entropy": [], "random": []}
    table |= {"first layers": [], "last layers": []}
    for budget in range(LAYERS + 1):
        index = losses.of_budget(budget)

        def fixed(big: Tensor) -> float:
            pattern = torch.where(big, BIG, SMALL)
            place = (losses.routes == pattern).all(-1).nonzero()[0, 0]
            return float(losses.mean(losses.loss[..., place]))

        table["oracle"].append(float(losses.mean(losses.oracle(budget)[0])))
        table["minimum by chance"].append(float(losses.mean(losses.expected_minimum(budget))))
        table["smallest entropy"].append(float(losses.mean(losses.by_entropy(budget))))
        table["random"].append(float(losses.mean(losses.loss[..., index].mean(-1))))
        table["first layers"].append(fixed(order < budget))
        table["last layers"].append(fixed(order >= LAYERS - budget))
    return table


@torch.no_grad()
def routed(attached: AttachedDuo, ids: Tensor) -> tuple[float, float]:
    """Loss with the routers' own choices, and how many big blocks they take per token."""
    with attached.learned(hard=True) as seen:
        logits = attached.model(ids, use_cache=False).logits
    logprob = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])
    big = torch.stack([probability.argmax(-1) == BIG for probability in seen])
    return -float(logprob.mean()), float(big.float().sum(0).mean())


def by_kind(losses: RouteLosses, ids: Tensor) -> dict[str, float]:
    """What big blocks gain over small ones, by the byte that is predicted."""
    every_small, every_big = losses.of_budget(0)[0], losses.of_budget(LAYERS)[0]
    gain = token_difficulty(losses.loss[..., every_small], losses.loss[..., every_big])
    letters = torch.zeros(256, dtype=torch.bool)
    letters[[byte for byte in range(128) if chr(byte).isalnum() or chr(byte) == "_"]] = True
    name, blank = letters[ids], ids == 32
    before_name, before_blank = name.roll(1, 1), blank.roll(1, 1)
    kinds = {
        "first byte of a name": name & ~before_name,
        "further byte of a name": name & before_name,
        "blank after a blank": blank & before_blank,
    }
    return {kind: float(gain[mask & losses.scored].mean()) for kind, mask in kinds.items()}


def modules(rng: random.Random) -> list[bytes]:
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    source = [file.read_bytes() for file in files]
    source = [text for text in source if len(text) > 2 * LENGTH]
    rng.shuffle(source)
    return source


def pieces(source: list[bytes], count: int, rng: random.Random) -> Tensor:
    """Random pieces of LENGTH bytes: [count, LENGTH]."""
    rows = []
    for text in rng.choices(source, k=count):
        start = rng.randrange(len(text) - LENGTH)
        rows.append(list(text[start : start + LENGTH]))
    return torch.tensor(rows)


def draw(figure: Any, table: Table, losses: RouteLosses) -> None:
    left, right = figure.subplots(1, 2)
    for label, values in table.items():
        first = int(label == "routers")
        style = "--" if label == "minimum by chance" else "-"
        left.plot(range(first, first + len(values)), values, style, marker="o", label=label)
    left.set(xlabel="big blocks per byte", ylabel="loss (nats per byte)")
    left.legend(fontsize="small")
    for budget in range(1, LAYERS):
        right.plot(range(LAYERS), losses.usage(budget).tolist(), marker="o", label=f"{budget} big")
    right.set(xlabel="layer", ylabel="how often the oracle's block is big")
    right.legend()


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
