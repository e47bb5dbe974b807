"""DPO in the toy preference world, where the optimum that it aims at is known in closed form.

The baseline is likelihood training on the chosen completions (what one does with pairs without a
preference objective); the ceiling is the exact maximiser of E[r] - beta KL at the same KL.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean
from typing import Any, ClassVar

import torch

from tokenry.core.batch import TokenBatch
from tokenry.core.scores import Scores
from tokenry.lab.preference_world import (
    WorldPoint,
    fit_reference,
    frontier_gap,
    sample_sequences,
    train_in_world,
)
from tokenry.learn.objective import Loss, Objective, Unit
from tokenry.learn.preference.dpo import DPO
from tokenry.learn.preference.pairs import halves, sequence_sum
from tokenry.papers.base import Measurement, Outcome, Paper
from tokenry.tasks.worlds.preference import PreferenceWorld

SEEDS = 3
BETAS = (0.3, 1.0)
LEARNING_RATES = (3e-4, 1e-3)  # of the baseline
SETTINGS: dict[str, Any] = {
    "steps": 150,
    "batch_size": 32,
    "measure_every": 30,
    "samples": 512,
}


@dataclass(frozen=True)
class ChosenLikelihood(Objective):
    """Likelihood of the chosen completions: the baseline without rejected ones."""

    needs: ClassVar[tuple[str, ...]] = ("policy.logprob",)
    unit: ClassVar[Unit] = "pair"

    def __call__(self, batch: TokenBatch, policy: Scores, reference: Scores | None) -> Loss:
        chosen, _ = halves(sequence_sum(policy.need("logprob"), batch))
        tokens, _ = halves(batch.target.sum(-1))
        return Loss(-chosen.sum() / tokens.sum().clamp_min(1))


def reproduce(seed: int) -> Outcome:
    """Three worlds, seeds `seed`, `seed + 1`, `seed + 2`."""
    measurements, gaps, shares, drawn = [], [], [], None
    for offset in range(SEEDS):
        world, start, dpo, likelihood = trajectories(seed + offset)
        drawn = drawn or (world, dpo, likelihood)
        gap = frontier_gap(dpo, likelihood)
        point = dpo[-1][-1]  # beta = 1, the end
        best = best_reward(world, point.kl)
        share = (point.reward - start) / (best - start)
        gaps.append(gap)
        shares.append(share)
        strongest = max((p for points in likelihood for p in points), key=lambda p: p.reward)
        measurements += [
            Measurement(label, value, unit, seed + offset)
            for label, value, unit in (
                ("reference: true reward", start, "per sequence"),
                ("dpo: true reward", point.reward, "per sequence"),
                ("dpo: KL(policy || reference)", point.kl, "nats"),
                ("closed-form optimum: true reward at that KL", best, "per sequence"),
                ("dpo: share of the optimum's gain", share, ""),
                ("likelihood of chosen: best true reward", strongest.reward, "per sequence"),
                ("likelihood of chosen: its KL(policy || reference)", strongest.kl, "nats"),
                ("dpo minus likelihood: reward at equal KL", gap, "per sequence"),
            )
        ]
    held = mean(gaps) > 0 and mean(shares) >= 0.75
    assert drawn is not None
    return Outcome(
        held=held,
        needs="means over 3 worlds: DPO's true reward at equal KL is above that of likelihood "
        "training on chosen completions, and at least 75% of the closed-form optimum's gain over "
        "the reference at that KL",
        measurements=measurements,
        reason=None
        if held
        else f"reward at equal KL {mean(gaps):+.2f} over likelihood training, "
        f"{mean(shares):.0%} of the optimum's gain",
        figure=lambda figure: _draw(figure, *drawn),
    )


def trajectories(
    seed: int,
) -> tuple[PreferenceWorld, float, list[list[WorldPoint]], list[list[WorldPoint]]]:
    """A world, the reference's reward, and the measurements of DPO and of the baseline."""
    world = PreferenceWorld(seed=seed)
    generator = torch.Generator().manual_seed(seed)
    reference = fit_reference(world, seed)
    drawn = sample_sequences(reference, world, 4000, generator)
    pairs = world.pairs(2000, generator, drawn)

    def points(goal: Any, learning_rate: float) -> list[WorldPoint]:
        return train_in_world(
            goal, world, reference, pairs, seed=seed, learning_rate=learning_rate, **SETTINGS
        )[1]

    dpo = [points(DPO(beta), 3e-4) for beta in BETAS]
    likelihood = [points(ChosenLikelihood(), rate) for rate in LEARNING_RATES]
    return world, float(world.reward(drawn).mean()), dpo, likelihood


def best_reward(world: PreferenceWorld, kl: float) -> float:
    """The highest expected reward at this KL from the language, by bisection on beta."""
    low, high = 1e-2, 1e3
    for _ in range(60):
        middle = (low * high) ** 0.5
        if world.optimum(middle).kl(world.language) > kl:
            low = middle
        else:
            high = middle
    return world.optimum(high).expected(world.token_reward)


def _draw(
    figure: Any,
    world: PreferenceWorld,
    dpo: list[list[WorldPoint]],
    likelihood: list[list[WorldPoint]],
) -> None:
    axes = figure.subplots()
    for label, runs, values in (
        ("DPO, beta", dpo, BETAS),
        ("likelihood of chosen, rate", likelihood, LEARNING_RATES),
    ):
        for points, value in zip(runs, values, strict=True):
            axes.plot(
                [p.kl for p in points],
                [p.reward for p in points],
                marker="o",
                label=f"{label} {value:g}",
            )
    top = max(p.kl for points in dpo for p in points)
    grid = [top * (i + 1) / 20 for i in range(20)]
    axes.plot(grid, [best_reward(world, kl) for kl in grid], "k--", label="closed-form optimum")
    axes.set(xlabel="KL(policy || reference), nats", ylabel="true reward")
    axes.legend()


PAPER = Paper(
    number=None,
    key="dpo",
    title="Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
    arxiv="2305.18290",
    role="objective",
    family="preference",
    claim="Classifying preference pairs by the policy's implicit reward reaches the optimum of "
    "KL-constrained RLHF without a reward model or sampling.",
    reproduce=reproduce,
    threads=1,
)
