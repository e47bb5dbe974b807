"""A model of a mixture of styles, and controls before its texts: soft prompts or words."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tokenry.core.batch import TokenBatch
from tokenry.lab.toy_training import fit_toy, sample_on, train_copy
from tokenry.tasks.worlds.preference import Pairs, PreferenceWorld


class ControlPoint(NamedTuple):
    """Mean true reward (polite tokens) of fresh samples under the good and the bad control."""

    step: int
    good: float
    bad: float

    @property
    def gap(self) -> float:
        return self.good - self.bad


@dataclass(frozen=True)
class StyleBench:
    """Polite, neutral and rude texts of one language, a third each, and a model fitted to them.

    pairs: of which the preferred text tends to hold more polite tokens (reward +1). length: tokens
    of a control. fit_steps: of the model. batch_size: pairs in a batch. samples: of a measurement.
    """

    seed: int
    pairs: int = 300
    length: int = 8
    fit_steps: int = 250
    batch_size: int = 16
    samples: int = 1000

    @cached_property
    def world(self) -> PreferenceWorld:
        return PreferenceWorld(seed=self.seed, liked=4, disliked=0)

    def texts(self, count: int, draw: torch.Generator) -> Tensor:
        """Texts of all styles, shuffled, [count, length]; count: a multiple of 3."""
        styles = (self.world.optimum(1.0), self.world.language, self.world.optimum(-1.0))
        drawn = torch.cat([style.sample(count // 3, draw) for style in styles])
        return drawn[torch.randperm(len(drawn), generator=draw)]

    @cached_property
    def model(self) -> Any:
        def batches(draw: torch.Generator) -> TokenBatch:
            return self.world.sequences_batch(self.texts(63, draw))

        size = self.world.vocabulary + 1, self.world.length + self.length + 1
        return fit_toy(
            batches, *size, self.seed, data=self.world, steps=self.fit_steps, clip=1.0, width=32
        )

    @cached_property
    def data(self) -> tuple[Pairs, Tensor]:
        """Labelled pairs, and a random text [2, length] for each control: good, then bad."""
        draw = torch.Generator().manual_seed(self.seed)
        pairs = self.world.pairs(self.pairs, draw, self.texts(2 * self.pairs, draw))
        return pairs, torch.randint(self.world.vocabulary, (2, self.length), generator=draw)

    def train(
        self, objective: Any, model: Any, modules: Any = None, **options: Any
    ) -> tuple[Any, list[ControlPoint]]:
        """A copy of the model, trained and measured under its soft prompts (`modules`), or with
        each class's text before the sequence where it has none. options: of `train_copy`."""
        pairs, words = self.data

        def batches(draw: torch.Generator) -> TokenBatch:
            index = torch.randint(len(pairs), (self.batch_size,), generator=draw)
            batch = self.world.batch(pairs, index)
            return batch if modules is not None else behind(batch, words)

        def measure(step: int, policy: Any) -> ControlPoint:
            return ControlPoint(step, *(self.reward(policy, modules, kind) for kind in (0, 1)))

        return train_copy(batches, objective, model, modules=modules, measure=measure, **options)

    def reward(self, policy: Any, modules: Any, kind: int) -> float:
        """Mean reward of samples under the good (0) or the bad (1) control."""
        prompts = torch.full((self.samples, 1), self.world.start)
        if modules is None:
            prompts = torch.cat([self.data[1][kind].expand(self.samples, -1), prompts], 1)
        control = None if modules is None else modules.weight[kind].detach()
        draw = torch.Generator().manual_seed(1)
        drawn = sample_on(policy, prompts, self.world.length, draw, control=control)
        return float(self.world.reward(drawn % self.world.vocabulary).mean())


def behind(batch: TokenBatch, words: Tensor) -> TokenBatch:
    """The batch with a text [classes, n] before the rows of each class, block after block."""
    before = words.repeat_interleave(len(batch.ids) // len(words), 0)
    seen = torch.ones_like(before, dtype=torch.bool)
    return replace(
        batch,
        ids=torch.cat([before, batch.ids], 1),
        attention=torch.cat([seen, batch.attention], 1),
        target=torch.cat([~seen, batch.target], 1),
    )
