"""Annotation learnt from a noisy corpus, and pairs that differ in a label easily confused."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tokenry.core.batch import TokenBatch
from tokenry.lab.toy_training import completed, fit_toy, train_copy
from tokenry.learn.preference.tab_po import difference_weights
from tokenry.model.score import score
from tokenry.tasks.worlds.annotation import (
    FIRST_LABEL,
    LABEL_PLACES,
    LABELS,
    SCAFFOLD,
    VOCABULARY,
    Annotation,
    answers,
)


class AnnotationPoint(NamedTuple):
    """A policy on held-out inputs: exact matches of both labels, and mean log p of the right label
    and of its most confusable class, in nats."""

    step: int
    exact: float
    right: float
    confused: float


@dataclass(frozen=True)
class AnnotationBench:
    """A model tuned on the corpus, and pairs whose rejected answer has one label swapped for the
    class that the tuned model takes for it most often.

    noise: of the corpus. tune_steps: of the model. pairs, held_out: inputs of both. batch_size:
    pairs in a batch. steps, every: of a training and between its measurements. code: weight of a
    label's token in the column "weight", beside that of differences.
    """

    task: Annotation
    noise: float = 0.25
    tune_steps: int = 250
    pairs: int = 1500
    held_out: int = 500
    batch_size: int = 32
    steps: int = 120
    every: int = 30
    code: float = 1.1

    @cached_property
    def tuned(self) -> Any:
        def batches(draw: torch.Generator) -> TokenBatch:
            prompts, labels = self.task.draw(64, draw, self.noise)
            return completed(prompts, answers(labels))

        return fit_toy(
            batches, VOCABULARY, 32, self.task.seed, data=(self.task, self.noise),
            steps=self.tune_steps, decay=0.0, width=48,
        )  # fmt: skip

    @cached_property
    def rival(self) -> Tensor:
        """For each label's place and class, the class most often taken for it, [2, 6]."""
        prompts, labels = self._data[0]
        probability = label_logprobs(self.tuned, prompts, labels).exp()
        totals = torch.zeros(2, LABELS, LABELS)
        for side in (0, 1):
            totals[side].index_add_(0, labels[:, side], probability[:, side])
        totals.diagonal(dim1=1, dim2=2).zero_()
        return totals.argmax(-1)

    @cached_property
    def _data(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor, Tensor], Any]:
        """Inputs that the confusions are counted on; pairs, and which label differs; tests."""
        draw = torch.Generator().manual_seed(self.task.seed)
        counted = self.task.draw(600, draw)
        pairs = *self.task.draw(self.pairs, draw), torch.randint(2, (self.pairs,), generator=draw)
        return counted, pairs, self.task.draw(self.held_out, draw)

    def batch(self, generator: torch.Generator) -> TokenBatch:
        """A preference batch with the column "weight" of every token."""
        index = torch.randint(self.pairs, (self.batch_size,), generator=generator)
        prompts, labels, side = (part[index] for part in self._data[1])
        rows, swapped = torch.arange(len(index)), labels.clone()
        swapped[rows, side] = self.rival[side, labels[rows, side]]
        chosen, rejected = answers(labels), answers(swapped)
        batch = completed(prompts.repeat(2, 1), torch.cat([chosen, rejected]))
        weight = torch.zeros(batch.shape)
        weight[batch.target] = self.weights(chosen, rejected).flatten()
        return replace(batch, group=rows.repeat(2), columns={"weight": weight})

    def weights(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """`code` for both labels, times `difference_weights` where the answers differ, [2B, 14]."""
        sides = zip([*chosen, *rejected], [*rejected, *chosen], strict=True)
        weights = torch.tensor([difference_weights(a.tolist(), b.tolist()) for a, b in sides])
        weights[:, LABEL_PLACES] *= self.code
        return weights

    def measure(self, step: int, policy: Any) -> AnnotationPoint:
        prompts, labels = self._data[2]
        logprobs = label_logprobs(policy, prompts, labels)
        rivals = self.rival[torch.arange(2).expand(len(labels), -1), labels]
        right, confused = (logprobs.gather(-1, kind[..., None]).mean() for kind in (labels, rivals))
        exact = (logprobs.argmax(-1) == labels).all(-1).float().mean()
        return AnnotationPoint(step, float(exact), float(right), float(confused))

    def train(self, objective: Any, learning_rate: float) -> list[AnnotationPoint]:
        """The measurements on the way of a copy of the tuned model."""
        return train_copy(
            self.batch, objective, self.tuned, steps=self.steps, learning_rate=learning_rate,
            seed=self.task.seed, measure=self.measure, every=self.every,
        )[1]  # fmt: skip


@torch.no_grad()
def label_logprobs(model: Any, prompts: Tensor, labels: Tensor) -> Tensor:
    """log p of every class at both labels' places behind the right scaffold, [count, 2, 6]."""
    batch = completed(prompts, answers(labels))
    places = torch.zeros_like(batch.target)
    places[:, [prompts.shape[1] + place for place in LABEL_PLACES]] = True
    logits = score(model, batch, needs=("hidden",)).logits(places)
    return logits.log_softmax(-1).view(len(prompts), 2, -1)[..., FIRST_LABEL:SCAFFOLD]
