"""AlignDistil in the toy preference world: does a teacher at every token save samples?

DPO and reverse DPO are trained on the pairs first. From the reference, three on-policy methods then
chase the reward that DPO has learnt: REINFORCE with the sequence's DPO reward and a KL penalty;
distillation from the fixed teacher, which has the very same optimum at every state; and AlignDistil
with its reverse model and adaptive weights. Each has the better of two learning rates.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from tokenry.core.batch import TokenBatch
from tokenry.core.scores import Scores
from tokenry.lab.preference_world import fit_reference, sample_sequences, train_in_world
from tokenry.learn.fit import fit
from tokenry.learn.preference.align_distil import AlignDistil
from tokenry.learn.preference.dpo import DPO
from tokenry.learn.preference.pairs import sequence_sum
from tokenry.model.score import score
from tokenry.papers.base import Measurement, Outcome, Paper
from tokenry.tasks.worlds.preference import Pairs, PreferenceWorld

WORLDS = 2
DPO_BETA = 0.3
DPO_SETTINGS: dict[str, Any] = {
    "steps": 100,
    "batch_size": 32,
    "learning_rate": 3e-4,
    "measure_every": 100,
    "samples": 512,
}
BETA, FIXED_WEIGHT = 0.1, 2.0  # beta2 = BETA / FIXED_WEIGHT is the weight of the KL penalty
STEPS, SAMPLES, MEASURE_EVERY = 40, 64, 4
LEARNING_RATES = (3e-4, 1e-3)
METHODS = ("reinforce", "fixed teacher", "aligndistil")
SHARE = 0.8  # of DPO's gain in true reward: the level whose samples are counted


@dataclass(frozen=True)
class Trajectory:
    """(samples drawn so far, true reward) on the way, and KL(policy || reference) at the end."""

    points: list[tuple[int, float]]
    kl: float

    @property
    def final(self) -> float:
        return self.points[-1][1]

    def samples_until(self, level: float) -> float:
        """Samples until a reward, linear between measurements; inf if it was never reached."""
        for (before, low), (after, high) in pairwise(self.points):
            if low < level <= high:
                return before + (level - low) / (high - low) * (after - before)
        return math.inf


@dataclass(frozen=True)
class Run:
    """One world: rewards of the reference and of DPO, and each method's trajectories by rate."""

    start: float
    dpo: float
    trajectories: dict[str, list[Trajectory]]

    @property
    def level(self) -> float:
        return self.start + SHARE * (self.dpo - self.start)

    def fastest(self, method: str) -> Trajectory:
        """The trajectory of the better learning rate."""
        return min(self.trajectories[method], key=lambda one: one.samples_until(self.level))

    def samples(self, method: str) -> float:
        """Until the level; all that were drawn when it was not reached."""
        return min(self.fastest(method).samples_until(self.level), STEPS * SAMPLES)


def reproduce(seed: int) -> Outcome:
    """Two worlds, seeds `100 seed` and `100 seed + 1`."""
    runs = [run(100 * seed + offset) for offset in range(WORLDS)]
    measurements = []
    for offset, found in enumerate(runs):
        rows = [("reference: true reward", found.start, ""), ("dpo: true reward", found.dpo, "")]
        for method in METHODS:
            label = f"{method}: samples until {SHARE:.0%} of DPO's gain"
            rows.append((label, found.samples(method), "samples"))
            for rate, one in zip(LEARNING_RATES, found.trajectories[method], strict=True):
                rows.append((f"{method}, rate {rate}: final true reward", one.final, ""))
                rows.append((f"{method}, rate {rate}: final KL to the reference", one.kl, "nats"))
        measurements += [Measurement(*row, 100 * seed + offset) for row in rows]

    samples = {method: mean(found.samples(method) for found in runs) for method in METHODS}
    final = {method: mean(found.fastest(method).final for found in runs) for method in METHODS}
    kl = {method: mean(found.fastest(method).kl for found in runs) for method in METHODS}
    dpo = mean(found.dpo for found in runs)

    def listed(values: dict[str, float], form: str) -> str:
        return ", ".join(f"{method} {value:{form}}" for method, value in values.items())

    faster = max(samples["aligndistil"], samples["fixed teacher"]) < samples["reinforce"]
    return Outcome(
        held=faster and final["aligndistil"] >= dpo,
        needs=f"means over 2 worlds, each method with the faster of two learning rates: fixed "
        f"teacher and AlignDistil reach {SHARE:.0%} of DPO's gain in true reward with fewer "
        "samples than REINFORCE, and AlignDistil's final true reward is at least DPO's",
        measurements=measurements,
        reason=f"samples: {listed(samples, '.0f')}; final true reward: {listed(final, '.2f')}, DPO "
        f"{dpo:.2f}, reference {mean(found.start for found in runs):.2f}; final KL to the "
        f"reference: {listed(kl, '.1f')} nats",
        figure=lambda figure: _draw(figure, runs[0]),
    )


def run(seed: int) -> Run:
    world = PreferenceWorld(seed=seed)
    reference = fit_reference(world, seed)
    generator = torch.Generator().manual_seed(seed)
    drawn = sample_sequences(reference, world, 4000, generator)
    pairs = world.pairs(2000, generator, drawn)
    swapped = Pairs(pairs.rejected, pairs.chosen)
    (dpo, points), (reverse, _) = (
        train_in_world(DPO(DPO_BETA), world, reference, data, seed=seed, **DPO_SETTINGS)
        for data in (pairs, swapped)
    )
    models = {"reference": reference, "dpo": dpo, "reverse": reverse}
    trajectories = {
        method: [train(method, world, models, rate, seed) for rate in LEARNING_RATES]
        for method in METHODS
    }
    return Run(points[0].reward, points[-1].reward, trajectories)


def train(
    method: str, world: PreferenceWorld, models: dict[str, Any], rate: float, seed: int
) -> Trajectory:
    """From the reference, `STEPS` updates with fresh samples each."""
    policy = copy.deepcopy(models["reference"]).requires_grad_(True)
    points = [(0, true_reward(policy, world))]

    def loss(step: int, generator: torch.Generator) -> Tensor:
        batch = world.sequences_batch(sample_sequences(policy, world, SAMPLES, generator))
        return loss_of(method, batch, policy, models)

    fit(
        loss,
        policy,
        steps=STEPS,
        learning_rate=rate,
        seed=seed,
        observe=lambda step, _: points.append((step * SAMPLES, true_reward(policy, world))),
        every=MEASURE_EVERY,
    )
    return Trajectory(points, kl_to(models["reference"], policy, world))


def loss_of(method: str, batch: TokenBatch, policy: Any, models: dict[str, Any]) -> Tensor:
    if method == "reinforce":
        own = score(policy, batch, grad=True)
        return reinforce(batch, own, *(score(models[name], batch) for name in ("dpo", "reference")))
    own = score(policy, batch, needs=("hidden",), grad=True)
    other = "reference" if method == "fixed teacher" else "reverse"
    dpo, against = (score(models[name], batch, needs=("hidden",)) for name in ("dpo", other))
    if other == "reference":
        goal = AlignDistil(BETA, weight=FIXED_WEIGHT, against="reference")
        return goal(batch, own, against, dpo=dpo).loss
    return AlignDistil(BETA)(batch, own, dpo=dpo, reverse=against).loss


def reinforce(batch: TokenBatch, policy: Scores, dpo: Scores, reference: Scores) -> Tensor:
    """The policy gradient of E[beta log dpo / ref] - beta2 KL, rewards whitened over the batch."""
    logprob, learnt, base = (
        sequence_sum(scores.need("logprob"), batch) for scores in (policy, dpo, reference)
    )
    reward = BETA * (learnt - base) - BETA / FIXED_WEIGHT * (logprob.detach() - base)
    advantage = (reward - reward.mean()) / (reward.std() + 1e-8)
    return -(advantage * logprob).mean()


def true_reward(policy: Any, world: PreferenceWorld) -> float:
    drawn = sample_sequences(policy, world, 512, torch.Generator().manual_seed(12345))
    return float(world.reward(drawn).mean())


def kl_to(reference: Any, policy: Any, world: PreferenceWorld) -> float:
    """KL(policy || reference) of whole sequences, estimated on fresh samples."""
    drawn = sample_sequences(policy, world, 512, torch.Generator().manual_seed(12345))
    batch = world.sequences_batch(drawn)
    own, base = (score(model, batch).need("logprob") for model in (policy, reference))
    return float((own - base).sum(-1).mean())


def _draw(figure: Any, found: Run) -> None:
    axes = figure.subplots()
    for method in METHODS:
        points = found.fastest(method).points
        axes.plot([p[0] for p in points], [p[1] for p in points], marker="o", label=method)
    axes.axhline(found.dpo, color="black", linestyle="--", label="DPO")
    axes.set(xlabel="samples", ylabel="true reward")
    axes.legend()


PAPER = Paper(
    number=118,
    key="align-distil",
    title="AlignDistil: Token-Level Language Model Alignment as Adaptive Policy Distillation",
    arxiv="2503.02832",
    role="objective",
    family="preference",
    claim="RLHF with DPO's reward is distillation from a teacher that extrapolates DPO's logits; "
    "done at every token with adaptive strength, it converges with far fewer samples and ends "
    "above DPO.",
    reproduce=reproduce,
    threads=1,
)
