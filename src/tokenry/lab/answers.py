"""A policy that answers prompts of `tasks.worlds.answers`, and an orchestrator of its rewards."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tokenry.core.batch import TokenBatch
from tokenry.lab.on_policy_world import roll_out, train_on_policy
from tokenry.lab.toy_training import fit_toy
from tokenry.learn.policy.orchestrator import (
    PreferenceOrchestrator,
    fit_orchestrator,
    orchestrator_loss,
    prompt_states,
    reward_profile_targets,
)
from tokenry.model.score import score
from tokenry.tasks.worlds import answers as world

SAMPLING: dict[str, Any] = {"max_new_tokens": world.LONGEST, "eos": world.END}


@dataclass(frozen=True)
class AnswerBench:
    """A base policy fitted to habitual answers, and what is learnt from it.

    seed: of everything. fit_steps, orchestrator_steps: of the two trainings. preferred, held_out:
    answers that the orchestrator learns from and is judged on. judged: answers of a measurement.
    """

    seed: int
    fit_steps: int = 150
    preferred: int = 500
    held_out: int = 200
    orchestrator_steps: int = 200
    judged: int = 1500

    @cached_property
    def base(self) -> Any:
        """A policy that answers with some of the prompt's words, other words, and an end."""
        length = 1 + world.ASKED + world.LONGEST
        shape: dict[str, Any] = {"data": (), "steps": self.fit_steps, "width": 48}
        return fit_toy(world.habits, world.VOCABULARY, length, self.seed, **shape)

    def best_answers(
        self, count: int, generator: torch.Generator, candidates: int = 8
    ) -> TokenBatch:
        """Prompts with the best of several answers, best by the kind's true weights."""
        batch = roll_out(
            self.base,
            world.prompts(count, generator),
            samples=candidates,
            seed=int(torch.randint(2**31, (1,), generator=generator)),
            **SAMPLING,
        )
        best = world.utility(batch).view(candidates, count).argmax(0)
        return batch.select(best * count + torch.arange(count))

    def orchestrator(self) -> tuple[PreferenceOrchestrator, float, Tensor]:
        """Learnt from preferred answers; its KL on held-out prompts in nats, and its mean weights
        for each kind, [3, 3].

        The KL is to the mean target of the prompt's kind: the target of a single answer also holds
        its chance, about 0.1 nats that no prompt foretells.
        """
        generator = torch.Generator().manual_seed(100 + self.seed)
        known, new = (self.best_answers(n, generator) for n in (self.preferred, self.held_out))

        def states(batch: TokenBatch) -> Tensor:
            return prompt_states(batch, score(self.base, batch, ("hidden",)))

        made = fit_orchestrator(
            states(known), world.rewards(known), steps=self.orchestrator_steps, seed=self.seed
        )
        targets, _ = reward_profile_targets(world.rewards(new), stats=made.stats)
        logits, kinds = made.logits(states(new)), new.ids[:, 0]
        expected, weights = (
            torch.stack([values[kinds == kind].mean(0) for kind in range(len(world.KINDS))])
            for values in (targets, logits.softmax(-1))
        )
        return made, float(orchestrator_loss(logits, expected[kinds])), weights

    def utility(self, policy: Any) -> float:
        """Mean worth of a policy's answers under each prompt's true weights, of 1."""
        asking = world.prompts(self.judged, torch.Generator().manual_seed(10_000 + self.seed))
        return float(world.utility(roll_out(policy, asking, seed=self.seed, **SAMPLING)).mean())

    def train(self, objective: Any, reward: Any = world.rewards, **settings: Any) -> Any:
        """The policy trained from the base, by default on all three rewards; settings of
        `train_on_policy`."""
        return train_on_policy(
            objective, self.base, world.prompts, reward, self.base,
            seed=self.seed, **SAMPLING, **settings,
        )[0]  # fmt: skip
