"""Entity typing learnt from few labels, and groups of sampled answers that checks have rated."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tokenry.core.batch import TokenBatch
from tokenry.lab.toy_training import fit_toy, sample_on, train_copy
from tokenry.learn.data.precompute import joined_batch
from tokenry.tasks.worlds.entity_typing import (
    ANSWER,
    END,
    READ,
    VOCABULARY,
    EntityTyping,
    micro_f1,
    until_end,
)


class TypingPoint(NamedTuple):
    """Mean constraint satisfaction rate and micro-F1 of sampled answers to held-out prompts."""

    step: int
    csr: float
    f1: float


@dataclass(frozen=True)
class RatedAnswers:
    """A model fine-tuned on labelled examples, and its rated answers to unlabelled prompts.

    labelled: examples that the model is tuned on, for `tune_steps`. prompts: unlabelled ones, with
    `samples` answers each; `batch_size` of them in a batch. held_out: prompts of a measurement.
    steps, every: of a training and between its measurements.
    """

    task: EntityTyping
    labelled: int = 40
    tune_steps: int = 60
    prompts: int = 600
    samples: int = 6
    batch_size: int = 16
    held_out: int = 500
    steps: int = 150
    every: int = 25

    @cached_property
    def _data(self) -> tuple[TokenBatch, Tensor, tuple[Tensor, list[list[int]]], torch.Generator]:
        draw = torch.Generator().manual_seed(self.task.seed)
        prompts, truth = self.task.draw(self.labelled, draw)
        unlabelled, _ = self.task.draw(self.prompts, draw)
        test = self.task.draw(self.held_out, draw)
        return joined_batch(prompts.tolist(), truth), unlabelled, test, draw

    @cached_property
    def tuned(self) -> Any:
        """The model that was tuned on the labelled examples."""

        def batches(draw: torch.Generator) -> TokenBatch:
            return self._data[0].select(torch.randint(self.labelled, (16,), generator=draw))

        return fit_toy(
            batches, VOCABULARY, READ + 10, self.task.seed, data=(self.task, self.labelled),
            steps=self.tune_steps, learning_rate=1e-3, decay=0.0, clip=1.0,
        )  # fmt: skip

    @cached_property
    def answers(self) -> tuple[TokenBatch, Tensor, Tensor]:
        """Prompts with their answers, sample after sample; the rates, and the rates shuffled."""
        _, unlabelled, _, draw = self._data
        prompts = unlabelled.repeat(self.samples, 1)
        answers = answered(self.tuned, prompts, draw)
        rates = self.task.csr(answers)
        shuffled = rates[torch.randperm(len(rates), generator=draw)]
        return joined_batch(prompts.tolist(), answers), rates, shuffled

    def train(self, objective: Any, *, shuffled: bool = False, **options: Any) -> list[TypingPoint]:
        """The measurements on the way of a copy of the tuned model; options: of `train_on`."""
        whole, *rates = self.answers

        def batches(draw: torch.Generator) -> TokenBatch:
            chosen = torch.randint(self.prompts, (self.batch_size,), generator=draw)
            rows = (chosen + self.prompts * torch.arange(self.samples)[:, None]).flatten()
            batch = whole.select(rows).with_columns(csr=rates[shuffled][rows])
            return replace(batch, group=torch.arange(self.batch_size).repeat(self.samples))

        return train_copy(
            batches, objective, self.tuned, steps=self.steps, seed=self.task.seed,
            measure=self.measure, every=self.every, **options,
        )[1]  # fmt: skip

    def measure(self, step: int, policy: Any) -> TypingPoint:
        prompts, truth = self._data[2]
        drawn = answered(policy, prompts, torch.Generator().manual_seed(1))
        return TypingPoint(step, float(self.task.csr(drawn).mean()), micro_f1(drawn, truth))


def answered(model: Any, prompts: Tensor, draw: torch.Generator) -> list[list[int]]:
    """A sampled answer to each prompt, with its end."""
    return [until_end(row) for row in sample_on(model, prompts, ANSWER, draw, end=END).tolist()]
