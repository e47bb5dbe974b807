"""MEET: do controls that are learned before the model carry more than those learned with it?

A small transformer fitted to a mixture of Markov styles (polite, neutral, rude); 300 pairs, of
which the preferred sequence tends to hold more polite tokens (reward +1), make 300 good and 300 bad
points. At equal steps, each with the better of two learning rates of the model, by control gap:

    text       one stage, ordinary tokens as control text before the sequence
    one stage  soft prompts and model trained together
    MEET       soft prompts alone for half of the steps, then both
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from tokenry.core.batch import TokenBatch
from tokenry.lab.toy_model import toy_model
from tokenry.lab.toy_training import NegativeLogLikelihood, sample_on, train_on
from tokenry.learn.preference.meet import MEET, ControlPrompts
from tokenry.papers.base import Measurement, Outcome, Paper
from tokenry.tasks.worlds.preference import PreferenceWorld

SEEDS = 2
POINTS, LENGTH, STEPS, EVERY, BATCH = 300, 8, 240, 120, 16
CONTROL_RATE = 1e-2
SAMPLES = 1000
SAMPLING_ERROR = 0.05  # of a control gap: deviation of a reward about 1.2, two times 1000 samples
MODEL_RATES = (1e-4, 5e-4)
METHODS = ("text", "one stage", "MEET")


@dataclass(frozen=True)
class Point:
    """Mean true reward (polite tokens) of samples under each control."""

    step: int
    good: float
    bad: float

    @property
    def gap(self) -> float:
        return self.good - self.bad


def reproduce(seed: int) -> Outcome:
    """Two languages, seeds `seed * 100` and one more."""
    runs = [trajectories(seed * 100 + offset) for offset in range(SEEDS)]
    measurements = []
    ends: dict[str, list[Point]] = {name: [] for name in METHODS}
    for offset, run in enumerate(runs):
        for name in METHODS:
            paths = [points for (method, _), points in run.items() if method == name]
            best = max((points[-1] for points in paths), key=lambda point: point.gap)
            ends[name].append(best)
            measurements += [
                Measurement(f"{name}: {what}", value, "polite tokens", seed * 100 + offset)
                for what, value in (
                    ("control gap", best.gap),
                    ("reward under good", best.good),
                    ("reward under bad", best.bad),
                )
            ]
        halfway = next(p for p in run["MEET", MODEL_RATES[0]] if p.step == STEPS // 2)
        measurements += [
            Measurement(
                "MEET: gap after stage 1", halfway.gap, "polite tokens", seed * 100 + offset
            ),
            Measurement(
                "MEET: reward before",
                run["MEET", MODEL_RATES[0]][0].good,
                "polite tokens",
                seed * 100 + offset,
            ),
        ]
    gap = {name: mean(point.gap for point in points) for name, points in ends.items()}
    good = {name: mean(point.good for point in points) for name, points in ends.items()}
    others = METHODS[:2]
    error = SAMPLING_ERROR * (2 / SEEDS) ** 0.5  # of the difference of two mean gaps
    ahead = all(gap["MEET"] > gap[name] + 2 * error for name in others)
    held = ahead and all(good["MEET"] >= good[name] for name in others)
    summary = "; ".join(f"{name} gap {gap[name]:.2f}, good {good[name]:.2f}" for name in METHODS)
    return Outcome(
        held=held,
        needs="means over 2 languages at equal steps, each method at its better learning rate: "
        "MEET's control gap is above that of both one-stage trainings by two standard errors, and "
        "its reward under the good control is not below theirs",
        measurements=measurements,
        reason=f"{summary}; a difference of gaps has a sampling error of {error:.2f}"
        + (
            ""
            if held
            else ". A small model that is trained in full learns to condition on any control, also "
            "on one without meaning of its own: the large model's neglect of it does not show here"
        ),
        figure=lambda figure: _draw(figure, runs[0]),
    )


def trajectories(seed: int) -> dict[tuple[str, float], list[Point]]:
    """Measurements on the way, by method and the model's learning rate."""
    world = PreferenceWorld(seed=seed, liked=4, disliked=0)
    generator = torch.Generator().manual_seed(seed)
    styles = (world.optimum(1.0), world.language, world.optimum(-1.0))

    def language(count: int, draw: torch.Generator) -> Tensor:
        drawn = torch.cat([style.sample(count // 3, draw) for style in styles])
        return drawn[torch.randperm(len(drawn), generator=draw)]

    model = train_on(
        lambda draw: world.sequences_batch(language(63, draw)),
        NegativeLogLikelihood(),
        toy_model(world.vocabulary + 1, world.length + LENGTH + 1, seed, width=32),
        steps=250,
        learning_rate=3e-3,
        decay=0.5,
        seed=seed,
    )
    pairs = world.pairs(POINTS, generator, language(2 * POINTS, generator))
    text = torch.randint(world.vocabulary, (2, LENGTH), generator=generator)

    def batches(words: Tensor | None) -> Any:
        def make(draw: torch.Generator) -> TokenBatch:
            batch = world.batch(pairs, torch.randint(len(pairs), (BATCH,), generator=draw))
            return batch if words is None else _behind(batch, words)

        return make

    def watch(points: list[Point], policy: Any, modules: ControlPrompts | None, offset: int) -> Any:
        def observe(step: int) -> None:
            if step or not offset:
                points.append(Point(step + offset, *_rewards(world, policy, modules, text)))

        return observe

    found: dict[tuple[str, float], list[Point]] = {}
    first: list[Point] = []
    controls = ControlPrompts.of(model, 2, LENGTH, seed=seed)
    stage_one = copy.deepcopy(model)
    train_on(
        batches(None), MEET(stage=1, length=LENGTH), stage_one, steps=STEPS // 2,
        learning_rate=CONTROL_RATE, seed=seed, modules=controls, every=EVERY, decay=0.3,
        observe=watch(first, stage_one, controls, 0),
    )  # fmt: skip
    for rate in MODEL_RATES:
        fresh = ControlPrompts.of(model, 2, LENGTH, seed=seed)
        plans = (
            ("text", NegativeLogLikelihood(), None, STEPS, text),
            ("one stage", MEET(2, LENGTH), fresh, STEPS, None),
            ("MEET", MEET(2, LENGTH), copy.deepcopy(controls), STEPS - STEPS // 2, None),
        )  # fmt: skip
        for name, objective, modules, steps, words in plans:
            points = list(first) if name == "MEET" else []
            policy = copy.deepcopy(model)
            train_on(
                batches(words), objective, policy, steps=steps, learning_rate=rate, decay=0.3,
                seed=seed + (name == "MEET"), modules=modules, every=EVERY,
                modules_rate=CONTROL_RATE,
                observe=watch(points, policy, modules, STEPS - steps),
            )  # fmt: skip
            found[name, rate] = points
    return found


def _behind(batch: TokenBatch, words: Tensor) -> TokenBatch:
    """The batch with each half's control text before its rows."""
    before = words.repeat_interleave(len(batch.ids) // 2, 0)
    seen = torch.ones_like(before, dtype=torch.bool)
    return TokenBatch(
        torch.cat([before, batch.ids], 1),
        torch.cat([seen, batch.attention], 1),
        torch.cat([~seen, batch.target], 1),
        batch.group,
    )


def _rewards(
    world: PreferenceWorld, policy: Any, modules: ControlPrompts | None, text: Tensor
) -> tuple[float, float]:
    """Mean reward of fresh samples under the good and under the bad control."""
    found = []
    for number in (0, 1):
        draw = torch.Generator().manual_seed(1)
        prompts = torch.full((SAMPLES, 1), world.start)
        if modules is None:
            prompts = torch.cat([text[number].expand(SAMPLES, -1), prompts], 1)
        control = None if modules is None else modules.weight[number].detach()
        drawn = sample_on(policy, prompts, world.length, draw, control=control)
        found.append(float(world.reward(drawn % world.vocabulary).mean()))
    return found[0], found[1]


def _draw(figure: Any, run: dict[tuple[str, float], list[Point]]) -> None:
    axes = figure.subplots()
    for (name, rate), points in run.items():
        axes.plot(
            [p.step for p in points],
            [p.gap for p in points],
            marker="o",
            label=f"{name}, rate {rate:g}",
        )
    axes.axvline(STEPS // 2, color="k", linestyle=":")
    axes.set(xlabel="step", ylabel="control gap, polite tokens per sequence")
    axes.legend()


PAPER = Paper(
    number=133,
    key="meet",
    title="Parameter-Efficient Tuning Helps Language Model Alignment",
    arxiv="2310.00819",
    role="objective",
    family="preference",
    claim="Learning soft prompts for good and bad answers on the frozen model first, and the model "
    "with them afterwards, makes them stronger controls than training everything at once.",
    reproduce=reproduce,
    threads=1,
)
