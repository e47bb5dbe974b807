"""Policies that learn to write a rare token: in a small language, and exactly in a table.

The target is the language given that the text contains the token.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from math import log
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tokenry.core.batch import TokenBatch
from tokenry.core.divergences import divergence_named
from tokenry.lab.on_policy_world import train_on_policy
from tokenry.lab.preference_world import fit_reference, fresh_samples
from tokenry.learn.fit import fit
from tokenry.learn.policy.f_dpg import f_dpg_loss, pseudo_reward
from tokenry.model.score import score
from tokenry.tasks.worlds.preference import PreferenceWorld


class RareTokenPoint(NamedTuple):
    """A policy measured: updates so far, share of texts with the token, entropy of a text, nats."""

    step: int
    satisfied: float
    entropy: float


@dataclass(frozen=True)
class RareTokenBench:
    """A small language, a policy fitted to it, and a token of it that is to be written.

    seed: of the world. rate: share of texts that contain the token, aimed at; the nearest token of
    so small a world is in 10 to 20% of them. samples: of a measurement. fit_steps, fit_batch: of
    the base policy.
    """

    seed: int
    rate: float = 0.05
    samples: int = 1024
    fit_steps: int = 300
    fit_batch: int = 128

    @property
    def world(self) -> PreferenceWorld:
        return PreferenceWorld(self.seed, vocabulary=16, length=8, spread=2.2)

    @cached_property
    def base(self) -> Any:
        return fit_reference(self.world, self.seed, steps=self.fit_steps, batch_size=self.fit_batch)

    @cached_property
    def token(self) -> int:
        drawn = fresh_samples(self.base, self.world, 4 * self.samples, self.seed).ids
        tokens = range(self.world.vocabulary)
        rates = torch.stack([(drawn == token).any(-1).float().mean() for token in tokens])
        return int((rates.clamp_min(1e-9).log() - log(self.rate)).abs().argmin())

    def contains(self, batch: TokenBatch) -> Tensor:
        """1 for the rows with the token, 0 for the others, [B]."""
        return (batch.ids == self.token).any(-1).float()

    def measured(self, policy: Any, step: int = 0) -> RareTokenPoint:
        batch = fresh_samples(policy, self.world, self.samples)
        entropy = score(policy, batch, needs=("entropy",)).need("entropy").sum(-1)
        return RareTokenPoint(step, float(self.contains(batch).mean()), float(entropy.mean()))

    def train(self, objective: Any, **settings: Any) -> list[RareTokenPoint]:
        """The measurements on the way from the base; settings of `train_on_policy`."""
        points: list[RareTokenPoint] = []
        train_on_policy(
            objective,
            self.base,
            self.world.prompt,
            self.contains,
            self.base,
            max_new_tokens=self.world.length,
            seed=self.seed,
            measure=lambda step, policy: points.append(self.measured(policy, step)),
            **settings,
        )
        return points


def train_tables(
    divergences: Iterable[str],
    seed: int,
    *,
    outcomes: int = 200,
    rate: float = 0.05,
    slack: float = 1e-4,
    steps: int = 200,
) -> dict[str, dict[str, float]]:
    """A softmax table trained in each divergence, and its exact divergences to the target, nats.

    Args:
        divergences: names of `core.divergence`.
        outcomes: of the table. rate: the share of them that the target allows.
        slack: what the others keep of their probability.
        steps: of 256 samples each.

    Returns:
        {trained in: {divergence: value}}.
    """
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(outcomes, generator=generator, dtype=torch.float64).mul(1.5).log_softmax(0)
    allowed = torch.rand(outcomes, generator=generator) < rate
    allowed[0] = True
    target = torch.where(allowed, base, base + torch.tensor(slack).log()).log_softmax(0)
    kinds = {name: divergence_named(name) for name in divergences}
    exact = {}
    for name, kind in kinds.items():
        logits = base.clone().requires_grad_()

        def loss(
            step: int, generator: torch.Generator, kind: object = kind, logits: Tensor = logits
        ) -> Tensor:
            policy = logits.log_softmax(0)
            drawn = torch.multinomial(policy.detach().exp(), 256, True, generator=generator)
            own = policy[drawn]
            reward = pseudo_reward(own, target[drawn], kind)  # type: ignore[arg-type]
            advantage = reward - (reward.sum() - reward) / (len(reward) - 1)  # of the others
            return f_dpg_loss(own, own.detach(), advantage).mean()

        options = {"learning_rate": 0.1, "optimizer": torch.optim.Adam, "clip": None}
        fit(loss, [logits], steps=steps, seed=generator, **options)  # type: ignore[arg-type]
        final = logits.detach().log_softmax(0)
        exact[name] = {other: float(kinds[other].terms(target, final).sum()) for other in kinds}
    return exact
