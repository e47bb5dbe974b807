"""A model of a partly harmful language: what it learns from negatives and its own answers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from tokenry.core.batch import TokenBatch
from tokenry.lab.toy_training import fit_toy, sample_on, train_copy
from tokenry.model.score import score
from tokenry.tasks.worlds.harmful_language import HarmfulLanguage

Data = Literal["negatives", "pairs", "anchors"]


@dataclass(frozen=True)
class HarmfulBench:
    """A reference fitted to the language, its harmful sentences as negatives, its answers as they
    come as positives.

    fit_steps: of the reference. pairs: negatives, each with a positive and `anchors` answers.
    drawn: sentences of the reference, of which they are made; held_out: of the language. steps,
    every: of a training and between its measurements. samples: of a measurement. prompts: negatives
    in a batch.
    """

    language: HarmfulLanguage
    fit_steps: int = 300
    pairs: int = 100
    anchors: int = 8
    drawn: int = 2000
    held_out: int = 600
    steps: int = 150
    every: int = 25
    samples: int = 800
    prompts: int = 8

    @cached_property
    def reference(self) -> Any:
        language, world = self.language, self.language.world

        def batches(generator: torch.Generator) -> TokenBatch:
            return world.sequences_batch(language.chain.sample(64, generator))

        return fit_toy(
            batches, world.vocabulary + 1, world.length + 1, language.seed, data=language,
            steps=self.fit_steps, clip=1.0, width=32,
        )  # fmt: skip

    @cached_property
    def data(self) -> tuple[Tensor, Tensor, TokenBatch]:
        """Negatives [pairs, length]; answers [anchors, pairs, length], the first of which are the
        positives; clean held-out sentences."""
        generator = torch.Generator().manual_seed(self.language.seed)
        own = self.draw(self.reference, self.drawn, generator)
        answers = own[: self.pairs * self.anchors].view(self.anchors, self.pairs, -1)
        heldout = self.language.chain.sample(self.held_out, generator)
        clean = self.language.world.sequences_batch(heldout[~self.language.harmful(heldout)])
        return own[self.language.harmful(own)][: self.pairs], answers, clean

    def draw(self, model: Any, count: int, generator: torch.Generator) -> Tensor:
        """Sentences of a model, [count, length]."""
        world = self.language.world
        start = torch.full((count, 1), world.start)
        return sample_on(model, start, world.length, generator) % world.vocabulary

    def batch(self, data: Data, generator: torch.Generator) -> TokenBatch:
        """Negatives; positives and negatives; or negatives and the anchors of each."""
        negatives, answers, _ = self.data
        row = torch.randint(self.pairs, (self.prompts,), generator=generator)
        blocks = {
            "negatives": [negatives[row]],
            "pairs": [answers[0, row], negatives[row]],
            "anchors": [negatives[row], *answers[:, row]],
        }[data]
        batch = self.language.world.sequences_batch(torch.cat(blocks))
        return replace(batch, group=torch.arange(self.prompts).repeat(len(blocks)))

    def measure(self, policy: Any) -> tuple[float, float]:
        """Perplexity of the clean sentences, and the share of the policy's samples that harm."""
        clean = self.data[2]
        drawn = self.draw(policy, self.samples, torch.Generator().manual_seed(1))
        logprob = score(policy, clean).need("logprob")
        perplexity = float((-logprob.sum() / clean.target.sum()).exp())
        return perplexity, float(self.language.harmful(drawn).float().mean())

    def train(self, objective: Any, data: Data, rate: float) -> list[tuple[float, float]]:
        """The measurements on the way of a copy of the reference."""
        return train_copy(
            lambda generator: self.batch(data, generator), objective, self.reference,
            steps=self.steps, learning_rate=rate, seed=self.language.seed, every=self.every,
            measure=lambda _, policy: self.measure(policy),
        )[1]  # fmt: skip
