"""SALSA in the toy preference world: PPO held to a soup, and PPO held to the policy's own start.

A pretrained model of the language is fine-tuned twice, on two noisy samples of texts in a good
style, to theta_1 and theta_2. Both methods then train theta_1 for the same number of samples on the
count of rare good tokens, at the same three strengths of the KL penalty; only the reference
differs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from tokenry.core.batch import TokenBatch
from tokenry.lab.on_policy_world import fit_likelihood, train_on_policy
from tokenry.lab.preference_world import fit_reference, sample_sequences
from tokenry.learn.policy.ppo import PPO
from tokenry.learn.policy.salsa import SALSA
from tokenry.learn.preference.pairs import sequence_sum
from tokenry.model.averaging import interpolation_curve, soup_models
from tokenry.model.score import score
from tokenry.papers.base import Measurement, Outcome, Paper
from tokenry.tasks.worlds.preference import PreferenceWorld

SEEDS = 3
PENALTIES = (0.05, 0.2, 0.5)
METHODS = {"ppo": PPO, "salsa": SALSA}
TEXTS, JUNK = 200, 0.15  # of a fine-tuning run, and the share of its tokens that are random
SAMPLES = 2000  # of a measurement
SAMPLING_ERROR = 0.03  # of a model's reward, from so many samples
SETTINGS: dict[str, Any] = {"steps": 20, "batch_size": 64, "learning_rate": 1e-3}


@dataclass(frozen=True)
class StyleWorld:
    """A world with rare good tokens, and models of it."""

    seed: int

    @cached_property
    def world(self) -> PreferenceWorld:
        return PreferenceWorld(self.seed, vocabulary=16, length=8, liked=2, disliked=0)

    @cached_property
    def fine_tuned(self) -> tuple[Any, Any]:
        """theta_1 and theta_2, from one pretrained model."""
        pretrained = fit_reference(self.world, self.seed, steps=120, batch_size=64)
        first, second = (self._fine_tune(pretrained, 2 * self.seed + run) for run in (0, 1))
        return first, second

    @cached_property
    def soup(self) -> Any:
        return soup_models(self.fine_tuned)

    def _fine_tune(self, model: Any, seed: int) -> Any:
        generator = torch.Generator().manual_seed(seed)
        texts = self.world.optimum(1.0).sample(TEXTS, generator)
        junk = torch.rand(texts.shape, generator=generator) < JUNK
        random = torch.randint(self.world.vocabulary, texts.shape, generator=generator)
        texts = torch.where(junk, random, texts)

        def draw() -> TokenBatch:
            return self.world.sequences_batch(
                texts[torch.randint(TEXTS, (32,), generator=generator)]
            )

        return fit_likelihood(model, draw, steps=60, learning_rate=2e-3)

    def rewards(self, batch: TokenBatch) -> Tensor:
        table = torch.cat([self.world.token_reward, torch.zeros(1, dtype=torch.float64)]).float()
        return (table[batch.ids] * batch.target).sum(-1)  # the start token, drawn again, earns 0

    def samples(self, model: Any) -> TokenBatch:
        generator = torch.Generator().manual_seed(10_000 + self.seed)
        return self.world.sequences_batch(sample_sequences(model, self.world, SAMPLES, generator))

    def reward(self, model: Any) -> float:
        return float(self.rewards(self.samples(model)).mean())

    def kl_from_start(self, policy: Any) -> float:
        """KL(policy || theta_1) in nats, from the policy's samples."""
        batch = self.samples(policy)
        own, start = (score(m, batch, ("logprob",)) for m in (policy, self.fine_tuned[0]))
        return float(sequence_sum(own.need("logprob") - start.need("logprob"), batch).mean())

    def train(self, method: str, penalty: float) -> tuple[float, float]:
        """Reward and KL from theta_1 at the end."""
        start = self.fine_tuned[0]
        policy, _ = train_on_policy(
            METHODS[method](kl=penalty),
            start,
            torch.tensor([[self.world.start]]),
            self.rewards,
            self.soup if method == "salsa" else start,
            max_new_tokens=self.world.length,
            seed=self.seed,
            **SETTINGS,
        )
        return self.reward(policy), self.kl_from_start(policy)


def reproduce(seed: int) -> Outcome:
    """Three worlds, seeds `seed`, `seed + 1`, `seed + 2`."""
    worlds = [StyleWorld(number) for number in range(seed, seed + SEEDS)]
    ends: dict[tuple[str, float], list[tuple[float, float]]] = {}
    soups, parents = [], []
    for world in worlds:
        for method in METHODS:
            for penalty in PENALTIES:
                ends.setdefault((method, penalty), []).append(world.train(method, penalty))
        soups.append(world.reward(world.soup))
        parents.append(mean(world.reward(model) for model in world.fine_tuned))
    rewards = {key: mean(reward for reward, _ in runs) for key, runs in ends.items()}
    drift = {key: mean(kl for _, kl in runs) for key, runs in ends.items()}
    best = {name: max(PENALTIES, key=lambda p: rewards[name, p]) for name in METHODS}
    gap = rewards["salsa", best["salsa"]] - rewards["ppo", best["ppo"]]
    error = SAMPLING_ERROR * (2 / SEEDS) ** 0.5
    middle = mean(soups) - mean(parents)
    further = drift["salsa", best["salsa"]] - drift["ppo", best["ppo"]]
    measurements = [
        Measurement(f"{name}, penalty {penalty}: {what}", value, unit, seed + offset)
        for (name, penalty), runs in ends.items()
        for offset, run in enumerate(runs)
        for what, value, unit in (
            ("true reward", run[0], "per text"),
            ("KL(policy || theta_1)", run[1], "nats"),
        )
    ]
    measurements += [
        Measurement(label, value, "per text", seed + offset)
        for label, values in (("soup: true reward", soups), ("theta_1 and theta_2: mean", parents))
        for offset, value in enumerate(values)
    ]
    at_each = ", ".join(
        f"{rewards['salsa', p] - rewards['ppo', p]:+.2f} at penalty {p:g}" for p in PENALTIES
    )
    weakest = set(best.values()) == {min(PENALTIES)}
    limit = (
        ". What is rewarded here is the true reward, so the weakest penalty is best for both, and "
        "where the pull is weak it matters little what it pulls to"
    )
    limit = limit if weakest else ""
    return Outcome(
        held=gap > 2 * error and middle >= -2 * error and further > 0,
        needs="means over 3 worlds, each method at its best of three penalties: SALSA's true "
        "reward is above PPO's by two sampling errors and it went further from theta_1; and the "
        "soup's reward is not below the mean of its two models' by more than two sampling errors",
        measurements=measurements,
        reason=f"reward, SALSA minus PPO: {at_each} (sampling error {error:.2f}); soup minus its "
        f"models {middle:+.2f}; KL from theta_1, SALSA minus PPO {further:+.1f} nats{limit}",
        figure=lambda figure: _draw(figure, rewards, drift, worlds[0]),
    )


def _draw(
    figure: Any,
    rewards: dict[tuple[str, float], float],
    drift: dict[tuple[str, float], float],
    world: StyleWorld,
) -> None:
    frontier, line = figure.subplots(1, 2)
    for name in METHODS:
        places = [(drift[name, p], rewards[name, p]) for p in PENALTIES]
        frontier.plot(*zip(*places, strict=True), marker="o", label=name.upper())
        for (x, y), penalty in zip(places, PENALTIES, strict=True):
            frontier.annotate(f"{penalty:g}", (x, y))
    frontier.set(xlabel="KL(policy || theta_1), nats", ylabel="true reward")
    frontier.legend()
    curve = interpolation_curve(*world.fine_tuned, world.reward, n=7)
    line.plot(*zip(*curve, strict=True), marker="o")
    line.set(xlabel="from theta_1 (0) to theta_2 (1)", ylabel="true reward")


PAPER = Paper(
    number=48,
    key="salsa",
    title="SALSA: Soup-based Alignment Learning for Stronger Adaptation in RLHF",
    arxiv="2411.01798",
    role="objective",
    family="preference",
    claim="PPO whose KL reference is the average of two fine-tuned models reaches a higher reward, "
    "further from its start, than PPO held to its start.",
    reproduce=reproduce,
    threads=1,
)
