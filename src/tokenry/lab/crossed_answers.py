"""Two policies of a bench, and a third that took another way to the same accuracy.

base      what the bench starts from, right now and then
rl        the base trained on its own answers, by reward
taught    the base trained on further right answers, until it is right as often as rl

Answers may be cross-sampled: one policy writes, and another chooses some of the tokens.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from tokenry.core.batch import TokenBatch
from tokenry.decode.branches import Branch
from tokenry.lab.policy_bench import PolicyBench
from tokenry.lab.toy_training import NegativeLogLikelihood, train_on
from tokenry.learn.policy.presets import DAPO
from tokenry.measure.cross_sampling import Above, AtRandom, CrossSampled, Swap, cross_sample
from tokenry.measure.shift import SHIFTED, Shift, distribution_shift
from tokenry.tasks.worlds.written_addition import END


@dataclass(frozen=True)
class CrossedPolicies:
    """bench: see `PolicyBench`. learning_rate: of both trainings. samples: answers to each of the
    bench's judged prompts. taught_steps: the most that the taught policy trains."""

    bench: PolicyBench
    learning_rate: float = 5e-4
    samples: int = 8
    taught_steps: int = 2000

    @cached_property
    def rl(self) -> Any:
        return self.bench.train(DAPO(), self.learning_rate).policy

    @cached_property
    def taught(self) -> Any:
        policy, goal = copy.deepcopy(self.bench.base), self.accuracy(self.rl)
        policy.requires_grad_(True)
        train_on(
            self.bench.world.given,
            NegativeLogLikelihood(),
            policy,
            steps=self.taught_steps,
            learning_rate=self.learning_rate,
            seed=self.bench.seed,
            observe=lambda step: step > 0 and self.accuracy(policy.eval()) >= goal,
            every=50,
        )
        return policy

    def accuracy(self, policy: Any) -> float:
        """The share of right answers that a policy samples to the judged prompts."""
        correct = self.bench.answers(policy, self.bench.judged, self.samples)[1]
        return float(correct.float().mean())

    def shift(self, policy: Any) -> Shift:
        """From the base to a policy, along the policy's own answers."""
        answers, _ = self.bench.answers(policy, self.bench.judged, self.samples)
        return distribution_shift(self.bench.base, policy, answers)

    def profile(self, policy: Any) -> tuple[dict[str, float], list[tuple[float, float]]]:
        """Measures of that shift, shares of positions, and its curve of concentration."""
        shift = self.shift(policy)
        few = shift.concentration
        measures = {
            "positions with JS below 0.05": few.below(0.05),
            "positions with JS above 0.1": few.above(SHIFTED),
            "positions with half of JS": few.carrying(0.5),
            "positions with nine tenths of JS": few.carrying(0.9),
        }
        if bool(shift.shifted.any()):
            found = shift.mechanics()
            for label in ("among the base's first three", "improbable to the base"):
                measures[f"shifted positions, first choice {label}"] = found[label]
        return measures, few.curve()

    def swept(
        self, primary: Any, other: Any, budgets: Sequence[int | None], shares: Sequence[float]
    ) -> tuple[dict[str, float], dict[str, list[tuple[float, float]]]]:
        """Swaps of the shifted positions within budgets, the last of which is measured, and swaps
        at random: of as many positions, and of shares of them.

        Returns:
            Measures, and for both kinds of swaps their points (effective share, accuracy).
        """
        start, _ = self.crossed(primary, other, Above(math.inf))
        aimed = [self.crossed(primary, other, Above(SHIFTED), budget) for budget in budgets]
        right, texts = aimed[-1]
        swaps = sum(map(sum, texts.swapped)) / sum(map(len, texts.ids))
        random = [self.crossed(primary, other, AtRandom(share)) for share in (swaps, *shares)]
        measures = {
            "accuracy before": start,
            "accuracy": right,
            "accuracy, as many at random": random[0][0],
            "swaps": swaps,
            "effective swaps": texts.effective_share,
        }
        lines = {
            name: [(0.0, start), *((texts.effective_share, right) for right, texts in points)]
            for name, points in (("shifted", aimed), ("at random", random[1:]))
        }
        return measures, lines

    def crossed(
        self, primary: Any, other: Any, swap: Swap, budget: int | None = None
    ) -> tuple[float, CrossSampled]:
        """The share of right answers that are sampled across two policies, and the answers."""
        world, seed = self.bench.world, 10**6 + self.bench.seed
        generator = torch.Generator().manual_seed(seed)
        prompts = world.prompts(self.bench.judged, generator).repeat(self.samples, 1)
        options: dict[str, Any] = {"max_new_tokens": world.longest, "ends": [END]}
        options |= {"budget": budget, "generator": generator}
        found = cross_sample(Branch(primary, prompts), Branch(other, prompts), swap, **options)
        texts = [[*row, *written] for row, written in zip(prompts.tolist(), found.ids, strict=True)]
        whole = TokenBatch.from_ids(texts)
        behind = torch.arange(whole.ids.shape[1]) >= world.asked
        batch = TokenBatch(whole.ids, whole.attention, whole.attention & behind)
        return float(world.correct(batch).float().mean()), found
