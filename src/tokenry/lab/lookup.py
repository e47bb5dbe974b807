"""A model that answers lookups with a value of the evidence, not always the right one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tokenry.core.batch import TokenBatch
from tokenry.lab.toy_training import completed, fit_toy, from_rows, train_copy
from tokenry.learn.data.precompute import PrecomputeContext, precompute
from tokenry.learn.reference import FrozenModel
from tokenry.tasks.worlds import lookup
from tokenry.tasks.worlds.lookup import FIRST_VALUE, VALUES, WORDS, Question

Test = tuple[Tensor, Tensor]  # prompts [N, T] and right answers [N]


@dataclass(frozen=True)
class LookupBench:
    """A reference fitted to noisy answers, and pairs in whose prompts the filler is a shortcut.

    correlation: how often the filler of a pair names the right value. fitted: questions that the
    reference is fitted to; noise: how often their answer is a random value. fit_steps: at most, for
    as long as the reference's answers are wrong more often than `wrong_until`. pairs, tests: how
    many. steps, every: of a training and between its measurements.
    """

    seed: int
    correlation: float = 0.95
    fitted: int = 3200
    noise: float = 0.4
    fit_steps: int = 600
    wrong_until: float = 0.53
    pairs: int = 1000
    tests: int = 500
    batch_size: int = 32
    steps: int = 240
    every: int = 60

    @cached_property
    def tokenizer(self) -> Any:
        return lookup.tokenizer()

    def tokenized(self, questions: list[Question]) -> Test:
        prompts = self.tokenizer([question.prompt for question in questions])["input_ids"]
        answers = [FIRST_VALUE + question.value for question in questions]
        return torch.tensor(prompts), torch.tensor(answers)

    @cached_property
    def reference(self) -> Any:
        """It has learned to answer with one of the evidence's values, not yet which."""
        draw = torch.Generator().manual_seed(self.seed)
        prompts, answers = self.tokenized(lookup.questions(self.fitted, 0.0, draw))
        random = FIRST_VALUE + torch.randint(VALUES, answers.shape, generator=draw)
        noisy = torch.rand(len(answers), generator=draw) < self.noise
        end = torch.full_like(answers, WORDS.index("."))
        whole = completed(prompts, torch.stack([torch.where(noisy, random, answers), end], 1))
        test = self.tokenized(lookup.questions(self.tests, 0.0, draw))

        def batches(generator: torch.Generator) -> TokenBatch:
            return whole.select(torch.randint(len(whole.ids), (64,), generator=generator))

        return fit_toy(
            batches, len(self.tokenizer), 2048, self.seed, data=self, steps=self.fit_steps,
            decay=0.0, good=lambda model: wrong(model, test) < self.wrong_until, every=5,
        )  # fmt: skip

    @cached_property
    def data(self) -> tuple[list[dict[str, Any]], dict[str, Test]]:
        """Preference rows; and tests in which the filler says nothing, or is as in training."""
        draw = torch.Generator().manual_seed(1000 + self.seed)
        rows = lookup.pairs(self.pairs, self.correlation, draw)
        kinds = {"filler says nothing": 0.0, "filler as in training": self.correlation}
        return rows, {
            name: self.tokenized(lookup.questions(self.tests, correlation, draw))
            for name, correlation in kinds.items()
        }

    def train(
        self, objective: Any, learning_rate: float
    ) -> tuple[dict[str, float], list[tuple[int, float]]]:
        """The trained policy's share of wrong answers by test, and on the way (where the filler
        says nothing)."""
        rows, tests = self.data
        context = PrecomputeContext(
            self.tokenizer, self.reference, FrozenModel(self.reference), seed=self.seed,
            batch_size=64,
        )  # fmt: skip
        batches = from_rows(objective, precompute(objective, rows, context), self.batch_size)
        first = next(iter(tests.values()))
        policy, points = train_copy(
            batches, objective, self.reference, steps=self.steps, learning_rate=learning_rate,
            clip=None, seed=self.seed, every=self.every,
            measure=lambda step, policy: (step, wrong(policy, first)),
        )  # fmt: skip
        return {name: wrong(policy, test) for name, test in tests.items()}, points


@torch.no_grad()
def wrong(model: Any, test: Test) -> float:
    """Share of greedy answers that are not the evidence's."""
    prompts, answers = test
    return float((model(prompts).logits[:, -1].argmax(-1) != answers).float().mean())
