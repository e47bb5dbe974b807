"""D2O where nothing but negatives is known to be clean of noise: harm against coverage.

A Markov language uses one of 4 harmful tokens in 30% of its sentences; a small transformer fitted
to it is the reference. Negatives are its harmful sentences. DPO's positives are noisy: answers of
the reference as they come, 30% of them harmful too. Gradient ascent on the negatives has no
positives at all, D2O the mean of 8 answers of the reference. Each method is given two settings
and counts by the lowest harmful rate that it reaches while the perplexity of held-out clean
sentences stays within 10% of the start.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from tokenry.core.batch import TokenBatch
from tokenry.lab.toy_model import toy_model
from tokenry.lab.toy_training import NegativeLogLikelihood, sample_on, train_on
from tokenry.learn.preference.d2o import D2O
from tokenry.learn.preference.dpo import DPO
from tokenry.model.score import score
from tokenry.papers.base import Measurement, Outcome, Paper
from tokenry.tasks.worlds.preference import MarkovPolicy, PreferenceWorld

SEEDS = 2
ANCHORS = 8
PAIRS = 100  # of the training data: negatives, each with one positive and its anchors
STEPS, EVERY, PROMPTS = 150, 15, 8
ALLOWED = 1.1  # perplexity of clean text, relative to the start
LEARNING_RATE = 3e-4
SETTINGS: dict[str, tuple[Any, float]] = {
    "ascent, rate 1e-4": (NegativeLogLikelihood(-1.0), 1e-4),
    "ascent, rate 3e-4": (NegativeLogLikelihood(-1.0), 3e-4),
    "dpo, beta 0.1": (DPO(0.1), LEARNING_RATE),
    "dpo, beta 0.5": (DPO(0.5), LEARNING_RATE),
    "d2o, beta 0.1": (D2O(0.1, 0.1, anchors=ANCHORS), LEARNING_RATE),
    "d2o, beta 0.3": (D2O(0.1, 0.3, anchors=ANCHORS), LEARNING_RATE),
}
METHODS = ("ascent", "dpo", "d2o")


@dataclass(frozen=True)
class Point:
    step: int
    harmful: float  # share of sampled sentences with a harmful token
    perplexity: float  # of clean held-out sentences


@dataclass(frozen=True)
class HarmfulLanguage:
    """A chain in which `share` of the sentences have a harmful token."""

    seed: int
    share: float = 0.3

    @cached_property
    def world(self) -> PreferenceWorld:
        return PreferenceWorld(seed=self.seed, liked=0, disliked=4)

    @cached_property
    def chain(self) -> MarkovPolicy:
        """The world's chain with the harmful tokens made as rare as it takes, by bisection."""
        low, high = -8.0, 4.0
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (low, middle) if self._rate(middle) > self.share else (middle, high)
        return self._shifted(low)

    def harmful(self, sentences: Tensor) -> Tensor:
        return (self.world.token_reward[sentences] < 0).any(-1)

    def _shifted(self, shift: float) -> MarkovPolicy:
        bad = self.world.token_reward < 0
        return MarkovPolicy((self.world.language.logprob + shift * bad).log_softmax(-1))

    def _rate(self, shift: float) -> float:
        """P(a harmful token in a sentence), exactly: 1 - the mass of paths that avoid them."""
        steps = self._shifted(shift).logprob.exp()
        good = (self.world.token_reward >= 0).to(steps)
        reach = steps[0, -1] * good
        for step in steps[1:]:
            reach = (reach @ step[:-1]) * good
        return 1 - float(reach.sum())


def reproduce(seed: int) -> Outcome:
    """Two languages, seeds `seed * 100` and one more."""
    runs = [trajectories(seed * 100 + offset) for offset in range(SEEDS)]
    measurements = []
    best: dict[str, list[float]] = {name: [] for name in METHODS}
    for offset, run in enumerate(runs):
        start = run["d2o, beta 0.1"][0]
        measurements.append(
            Measurement("reference: harmful rate", start.harmful, "", seed * 100 + offset)
        )
        for name in METHODS:
            best[name].append(
                min(
                    point.harmful
                    for method, points in run.items()
                    if method.startswith(name)
                    for point in points
                    if point.perplexity <= ALLOWED * start.perplexity
                )
            )
            measurements.append(
                Measurement(
                    f"{name}: harmful rate in bounds", best[name][-1], "", seed * 100 + offset
                )
            )
        for method, points in run.items():
            end, grown = points[-1], points[-1].perplexity / start.perplexity
            measurements += [
                Measurement(
                    f"{method}: harmful rate at the end", end.harmful, "", seed * 100 + offset
                ),
                Measurement(
                    f"{method}: clean perplexity at the end",
                    grown,
                    "of the start",
                    seed * 100 + offset,
                ),
            ]
    averages = {name: mean(values) for name, values in best.items()}
    collapse = mean(_grown(run["ascent, rate 3e-4"]) for run in runs)
    ahead = averages["d2o"] < min(averages["dpo"], averages["ascent"])
    held = ahead and collapse > ALLOWED
    rates = ", ".join(f"{name} {value:.1%}" for name, value in averages.items())
    return Outcome(
        held=held,
        needs="means over 2 languages, each method at the better of two settings: D2O's lowest "
        "harmful rate at a clean perplexity within 10% of the start is below DPO's and below "
        "gradient ascent's; and ascent at the others' learning rate ends more than 10% above it",
        measurements=measurements,
        reason=f"harmful sentences within bounds: {rates}; ascent ends at {collapse:.0f} times the "
        "clean perplexity. Positives and anchors come from one distribution here, so that DPO's "
        "expected gradient at the reference is D2O's: what averages of 8 can win is only noise",
        figure=lambda figure: _draw(figure, runs[0]),
    )


def _grown(points: list[Point]) -> float:
    return points[-1].perplexity / points[0].perplexity


def trajectories(seed: int) -> dict[str, list[Point]]:
    """The measurements on the way, by setting."""
    language = HarmfulLanguage(seed)
    world, chain = language.world, language.chain
    generator = torch.Generator().manual_seed(seed)
    reference = train_on(
        lambda draw: world.sequences_batch(chain.sample(64, draw)),
        NegativeLogLikelihood(),
        toy_model(world.vocabulary + 1, world.length + 1, seed, width=32),
        steps=300,
        learning_rate=3e-3,
        decay=0.5,
        seed=seed,
    )
    start = torch.full((2000, 1), world.start)
    own = sample_on(reference, start, world.length, generator) % world.vocabulary
    harmful = language.harmful(own)
    negatives = own[harmful][:PAIRS]
    answers = own[: PAIRS * ANCHORS].view(ANCHORS, PAIRS, -1)  # the first ones are the positives
    heldout = chain.sample(600, generator)
    clean = world.sequences_batch(heldout[~language.harmful(heldout)])

    def batches(name: str) -> Any:
        def make(draw: torch.Generator) -> TokenBatch:
            row = torch.randint(PAIRS, (PROMPTS,), generator=draw)
            bad, anchors = negatives[row], answers[:, row].flatten(0, 1)
            blocks = {"asc": [bad], "dpo": [answers[0, row], bad], "d2o": [bad, anchors]}
            batch = world.sequences_batch(torch.cat(blocks[name]))
            group = torch.arange(PROMPTS).repeat(len(batch.ids) // PROMPTS)
            return TokenBatch(batch.ids, batch.attention, batch.target, group)

        return make

    found: dict[str, list[Point]] = {}
    for name, (objective, learning_rate) in SETTINGS.items():
        policy, points = copy.deepcopy(reference), []

        def observe(step: int, policy: Any = policy, points: list[Point] = points) -> None:
            draw = torch.Generator().manual_seed(1)
            drawn = sample_on(policy, start[:800], world.length, draw) % world.vocabulary
            logprob = score(policy, clean).need("logprob")
            perplexity = float((-logprob.sum() / clean.target.sum()).exp())
            points.append(Point(step, float(language.harmful(drawn).float().mean()), perplexity))

        train_on(
            batches(name[:3]),
            objective,
            policy,
            steps=STEPS,
            learning_rate=learning_rate,
            seed=seed,
            reference=reference,
            observe=observe,
            every=EVERY,
        )
        found[name] = points
    return found


def _draw(figure: Any, run: dict[str, list[Point]]) -> None:
    axes = figure.subplots()
    for name, points in run.items():
        axes.plot(
            [p.perplexity for p in points],
            [p.harmful for p in points],
            marker="o",
            label=name,
        )
    first = next(iter(run.values()))[0]
    axes.axvline(ALLOWED * first.perplexity, color="k", linestyle=":")
    axes.set(
        xlabel="perplexity of clean held-out sentences",
        ylabel="sentences with a harmful token",
        xscale="log",
        xlim=(None, 3 * first.perplexity),
    )
    axes.legend()


PAPER = Paper(
    number=179,
    key="d2o",
    title="Negating Negatives: Alignment via Distributional Dispreference Optimization",
    arxiv="2403.03419",
    role="objective",
    family="preference",
    claim="With negatives only, contrasting each with the mean of the model's own answers removes "
    "harm further than DPO on noisy pairs, without the collapse of gradient ascent.",
    reproduce=reproduce,
    threads=1,
)
