"""SkipDecode at laptop scale: sentences about restaurants, written with ever fewer layers.

An eight-layer transformer learns to turn six attributes into a sentence (word tokens; one of four
patterns, which the first words settle). It is then fine-tuned for as long again in several ways,
from the same weights: with all layers; with SkipDecode's falling depth at 1.5, 2 and 3 times the
speed; and, at 2 times, with the same budgets spent on the lowest layers (early exit) or with four
layers for every token (static). The prompt runs with the largest budget.
"""

import copy
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tokenry.lab.toy_model import toy_model
from tokenry.learn.recipes.language_loss import language_loss, optimise
from tokenry.learn.recipes.skipdecode import train_on_schedule
from tokenry.model.adaptive.skipdecode import (
    AttachedSkipDecode,
    SkipDecode,
    average_layers,
    layers_for_speedup,
)
from tokenry.papers.base import Measurement, Outcome, Paper

SLOTS = {"name": 24, "food": 12, "price": 6, "area": 12, "stars": 6, "near": 24}
PATTERNS = (
    "<name> serves <price> <food> food in the <area> part of town , has <stars> and is near <near>",
    "near <near> in the <area> part of town there is <name> , a <price> place for <food> food with "
    "<stars>",
    "for <food> food at <price> prices with <stars> go to <name> near <near> in the <area> part of "
    "town",
    "rated <stars> , the <area> restaurant <name> close to <near> offers <food> food that is "
    "<price>",
)
WORDS = sorted({word for pattern in PATTERNS for word in pattern.split() if word[0] != "<"})
VALUES = [f"{slot} {number}" for slot, count in SLOTS.items() for number in range(count)]
IDS = {word: number for number, word in enumerate(["=", "end", *WORDS, *VALUES])}
PROMPT = len(SLOTS) + 1
SENTENCE = max(len(pattern.split()) for pattern in PATTERNS) + 1
LAYERS, WIDTH = 8, 64
STEPS, TUNING, BATCH, RATE = 350, 120, 48, 3e-3
TESTS = 400
SPEEDUPS = (1.5, 2.0, 3.0)

Batch = dict[str, Tensor]


def reproduce(seed: int) -> Outcome:
    rng = random.Random(seed)
    train = [batch(BATCH, rng) for _ in range(STEPS)]
    tune = [batch(BATCH, rng) for _ in range(TUNING)]
    test = batch(TESTS, rng)
    model = toy_model(len(IDS), PROMPT + SENTENCE, seed, width=WIDTH, layers=LAYERS)
    optimise(model.parameters(), lambda step, one: language_loss(model, one), train, STEPS, RATE)

    found: dict[str, float] = {}
    accuracy: dict[str, float] = {}
    layers: dict[str, float] = {}
    curves: dict[str, Tensor] = {}

    def run(label: str, schedule: SkipDecode, change: Callable[[Any], None] | None = None) -> None:
        copied = copy.deepcopy(model)
        attached = schedule.attach(copied)
        if change is not None:
            change(attached)
        train_on_schedule(
            attached, tune, steps=TUNING, learning_rate=RATE / 3, prompt_columns=PROMPT
        )
        loss, accuracy[label] = evaluate(copied, test)
        written = test["labels"] != -100
        found[label] = float(loss[written].mean())
        layers[label] = average_layers(schedule.schedule())
        curves[label] = (loss * written).sum(0) / written.sum(0).clamp_min(1)

    run("all layers", scheduled(LAYERS, LAYERS))
    for speedup in SPEEDUPS:
        run(f"SkipDecode, {speedup:g} x", scheduled(*layers_for_speedup(LAYERS, speedup)))
    double = scheduled(*layers_for_speedup(LAYERS, 2.0))
    run("early exit, 2 x", double, lowest_layers)
    run("static depth, 2 x", scheduled(LAYERS // 2, LAYERS // 2))

    measurements = [
        Measurement(f"{label}: {name}", values[label], unit, seed)
        for label in found
        for name, values, unit in (
            ("loss", found, "nats per token"),
            ("sentences with every slot right", accuracy, "share"),
            ("layers per token", layers, ""),
        )
    ]
    base = found["all layers"]
    skip = [found[f"SkipDecode, {speedup:g} x"] for speedup in SPEEDUPS]
    exit_early = found["early exit, 2 x"]
    conditions = {
        "SkipDecode is not better than early exit at 2 x": skip[1] < exit_early,
        "it costs more than a tenth of the loss at 2 x": skip[1] < 1.1 * base,
        "the loss does not rise with the speed-up": skip[0] <= skip[1] <= skip[2],
    }
    failed = [text for text, good in conditions.items() if not good]
    return Outcome(
        held=not failed,
        needs="at 2 x: loss(SkipDecode) < loss(early exit) and < 1.1 loss(all layers); loss rises "
        "with the speed-up",
        measurements=measurements,
        reason=f"At 2 x SkipDecode changes the loss by {skip[1] / base - 1:+.1%}, early exit by "
        f"{exit_early / base - 1:+.1%}, a static depth of {LAYERS // 2} by "
        f"{found['static depth, 2 x'] / base - 1:+.1%}" + "".join(f"; {text}" for text in failed),
        figure=lambda figure: draw(figure, curves),
    )


def scheduled(most: int, least: int) -> SkipDecode:
    return SkipDecode(max_layers=most, min_layers=least, length=SENTENCE)


def lowest_layers(attached: AttachedSkipDecode) -> None:
    """The same budgets for the lowest layers, and out: layer n runs while b(t) > n."""
    schedule = attached.method.schedule()
    for wrapper in attached.wrappers():
        runs = sum(budget > wrapper.number for budget in schedule)
        wrapper.depth = replace(
            wrapper.depth,
            in_prompt=attached.method.max_layers > wrapper.number,
            scheduled=2**62 if runs == len(schedule) else runs,
        )


def batch(count: int, rng: random.Random) -> Batch:
    """Attributes and sentences; labels are -100 outside of the sentences."""
    rows, attention, labels = [], [], []
    for _ in range(count):
        values = {slot: IDS[f"{slot} {rng.randrange(size)}"] for slot, size in SLOTS.items()}
        words = rng.choice(PATTERNS).split()
        sentence = [values[word[1:-1]] if word[0] == "<" else IDS[word] for word in words]
        sentence.append(IDS["end"])
        missing = SENTENCE - len(sentence)
        rows.append([*values.values(), IDS["="], *sentence, *[0] * missing])
        attention.append([1] * (PROMPT + len(sentence)) + [0] * missing)
        labels.append([-100] * PROMPT + sentence + [-100] * missing)
    names = ("input_ids", "attention_mask", "labels")
    return {
        name: torch.tensor(part)
        for name, part in zip(names, (rows, attention, labels), strict=True)
    }


@torch.no_grad()
def evaluate(model: Any, test: Batch) -> tuple[Tensor, float]:
    """Loss of every token [B, T], and the share of sentences whose slots are all predicted."""
    ids, attention = test["input_ids"], test["attention_mask"]
    logits = model(ids, attention_mask=attention, prompt_columns=PROMPT, use_cache=False).logits
    logprob = logits[:, :-1].log_softmax(-1)
    loss = torch.zeros(ids.shape)
    loss[:, 1:] = -logprob.gather(-1, ids[:, 1:, None])[..., 0]
    right = logprob.argmax(-1) == ids[:, 1:]
    slot = test["labels"][:, 1:] >= IDS[VALUES[0]]
    return loss, float((right | ~slot).all(-1).float().mean())


def draw(figure: Any, curves: dict[str, Tensor]) -> None:
    axes = figure.subplots()
    for label, curve in curves.items():
        axes.plot(range(SENTENCE), curve[PROMPT:].tolist(), label=label)
    axes.set(xlabel="position in the sentence", ylabel="loss (nats)")
    axes.legend()


PAPER = Paper(
    number=39,
    key="skipdecode",
    title="SkipDecode: Autoregressive Skip Decoding with Batching and Caching for Efficient LLM "
    "Inference",
    arxiv="2307.02628",
    role="router",
    family="efficiency",
    claim="Depth that falls with the position and keeps the top layers halves the layers run at a "
    "small loss, where early exits lose much, with batches and caches left as they are.",
    reproduce=reproduce,
    threads=1,
)
