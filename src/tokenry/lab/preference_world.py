"""Training small transformers in the toy preference world: reference, preference run, measurement.

What papers of the family share: a 2-layer transformer fitted to the world's language is the
reference; a copy of it is trained on Bradley-Terry pairs by any objective; on the way its true
reward, its divergences from the reference (whole vocabulary at every token) and its entropy are
measured on fresh samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tokenry.core.batch import TokenBatch
from tokenry.core.divergences import REVERSE_KL
from tokenry.decode.rollouts import rollouts
from tokenry.decode.sample import sample
from tokenry.decode.search import beam_search_policy
from tokenry.lab.frontiers import gap_at_equal
from tokenry.lab.table import Table
from tokenry.lab.toy_model import toy_model
from tokenry.lab.toy_training import NegativeLogLikelihood, fit_toy, train_copy
from tokenry.learn.objective import Objective
from tokenry.learn.preference.pairs import sequence_sum
from tokenry.learn.reference import FrozenModel
from tokenry.model.score import score
from tokenry.tasks.worlds.preference import Pairs, PreferenceWorld


@dataclass(frozen=True)
class WorldPoint:
    """A policy measured. Sums are over a sequence, in nats.

    step: optimizer steps so far. reward: mean true reward of samples. kl: KL(policy || reference)
    over samples of the policy. chosen_kl, rejected_kl: KL(reference || policy) along the chosen and
    rejected training completions. entropy: of the policy, over its samples. neutral_kl: the part of
    `kl` where the token that came has no reward.
    """

    step: int
    reward: float
    kl: float
    chosen_kl: float
    rejected_kl: float
    entropy: float
    neutral_kl: float


def world_model(world: PreferenceWorld, seed: int, width: int = 64, layers: int = 2) -> Any:
    """An untrained causal transformer over the world's tokens and its start token."""
    size = world.vocabulary + 1
    return toy_model(size, world.length + 1, seed, width=width, layers=layers, start=world.start)


def fit_reference(
    world: PreferenceWorld, seed: int = 0, *, steps: int = 300, batch_size: int = 128
) -> Any:
    """A transformer fitted to fresh samples of the language by maximum likelihood; kept."""

    def batches(generator: torch.Generator) -> TokenBatch:
        return world.sequences_batch(world.language.sample(batch_size, generator))

    size = world.vocabulary + 1
    return fit_toy(
        batches, size, world.length + 1, seed, data=(world, batch_size), steps=steps,
        start=world.start,
    )  # fmt: skip


POINT = {
    "true reward": ("reward", "per sequence"),
    "KL(policy || reference)": ("kl", "nats"),
    "chosen sequence KL": ("chosen_kl", "nats"),
    "rejected sequence KL": ("rejected_kl", "nats"),
    "sample entropy": ("entropy", "nats"),
    "KL on neutral tokens": ("neutral_kl", "nats"),
}
"""What a `WorldPoint` is called in a table of measurements: label -> (field, unit)."""


def add_point(
    table: Table, name: str, point: WorldPoint, seed: int, labels: Iterable[str] = tuple(POINT)[:5]
) -> None:
    """Measurements "NAME: LABEL" of a point, of these labels of `POINT`."""
    for label in labels:
        field, unit = POINT[label]
        table.add(f"{name}: {label}", getattr(point, field), unit, seed)


@dataclass(frozen=True)
class PreferenceBench:
    """A world with a reference fitted to it and labelled pairs of the reference's own sequences.

    Every objective sees the same batches. fit_steps, fit_batch: of the reference. drawn: sequences
    of which pairs are made. The others are settings of `train_in_world`.
    """

    world: PreferenceWorld
    fit_steps: int = 300
    fit_batch: int = 128
    drawn: int = 4000
    steps: int = 300
    batch_size: int = 64
    learning_rate: float = 1e-3
    measure_every: int = 50
    samples: int = 1024

    @cached_property
    def reference(self) -> Any:
        seed, steps = self.world.seed, self.fit_steps
        return fit_reference(self.world, seed, steps=steps, batch_size=self.fit_batch)

    @cached_property
    def _data(self) -> tuple[Tensor, Pairs, torch.Generator]:
        generator = torch.Generator().manual_seed(self.world.seed)
        sequences = sample_sequences(self.reference, self.world, self.drawn, generator)
        return sequences, self.world.pairs(self.drawn // 2, generator, sequences), generator

    @property
    def sequences(self) -> Tensor:
        """The reference's sequences behind the pairs, [drawn, length]."""
        return self._data[0]

    @property
    def pairs(self) -> Pairs:
        return self._data[1]

    @property
    def generator(self) -> torch.Generator:
        """What is drawn after the pairs is drawn from it."""
        return self._data[2]

    def held_out(self, count: int) -> Tensor:
        """Further sequences of the reference, [count, length]: others at each call."""
        return sample_sequences(self.reference, self.world, count, self.generator)

    def draw(self, policy: Any, seed: int) -> Tensor:
        """`samples` sequences of a policy, [samples, length]."""
        generator = torch.Generator().manual_seed(seed)
        return sample_sequences(policy, self.world, self.samples, generator)

    def log_ratio(self, policy: Any, sequences: Tensor, reference: Any = None) -> Tensor:
        """log policy / reference of every token, [N, length]; by default of the bench's own."""
        batch, models = self.world.sequences_batch(sequences), (policy, reference or self.reference)
        own, frozen = (score(model, batch).need("logprob")[:, 1:] for model in models)
        return own - frozen

    def train(
        self, objective: Objective, *, start: Any = None, **options: Any
    ) -> tuple[Any, list[WorldPoint]]:
        """The policy trained from the reference (or from `start`, which is then the reference) and
        its measurements on the way. options: of `train_in_world`, other `pairs` among them."""
        names = ("steps", "batch_size", "learning_rate", "measure_every", "samples")
        settings: dict[str, Any] = {name: getattr(self, name) for name in names}
        settings["seed"] = self.world.seed
        pairs = options.pop("pairs", self.pairs)
        start = start or self.reference
        return train_in_world(objective, self.world, start, pairs, **(settings | options))


def frontier(points: Iterable[WorldPoint]) -> list[tuple[float, float]]:
    """(KL, true reward) of a trajectory."""
    return [(point.kl, point.reward) for point in points]


def train_in_world(
    objective: Objective,
    world: PreferenceWorld,
    reference: Any,
    pairs: Pairs,
    *,
    batch_size: int = 64,
    measure_every: int = 50,
    samples: int = 1024,
    columns: Mapping[str, Tensor] | None = None,
    chosen_only: bool = False,
    **options: Any,
) -> tuple[Any, list[WorldPoint]]:
    """Train a copy of the reference on the pairs; the policy and its measurements on the way.

    The same seed gives every objective the same batches.

    Args:
        columns: the data columns that the objective needs, [2, N, length] per token or [2, N] per
            row: those of the chosen, then of the rejected sequences.
        chosen_only: batches of the chosen sequences, for likelihood training.
        options: of `train_copy` and `train_on`: steps, learning rate, seed, frozen, modules.
    """
    held = FrozenModel(reference)

    def batches(generator: torch.Generator) -> TokenBatch:
        index = torch.randint(len(pairs), (batch_size,), generator=generator)
        batch = world.batch(pairs, index)
        rows = {name: _of_rows(column, index) for name, column in (columns or {}).items()}
        batch = batch.with_columns(**rows)
        return batch.select(slice(batch_size)) if chosen_only else batch

    return train_copy(
        batches,
        objective,
        reference,
        measure=lambda step, policy: measure_in_world(
            policy, world, held, pairs, step, samples=samples
        ),
        every=measure_every,
        **options,
    )


def _of_rows(column: Tensor, index: Tensor) -> Tensor:
    """A column's values for the drawn pairs, chosen rows first; tokens stand behind the start."""
    rows = column[:, index].flatten(0, 1)
    return torch.nn.functional.pad(rows, (1, 0)) if rows.ndim > 1 else rows


def measure_in_world(
    policy: Any,
    world: PreferenceWorld,
    reference: FrozenModel,
    pairs: Pairs,
    step: int = 0,
    *,
    samples: int = 1024,
    seed: int = 12345,
) -> WorldPoint:
    """Measure a policy on `samples` fresh sequences of its own, and along the training pairs."""
    own = sample_sequences(policy, world, samples, torch.Generator().manual_seed(seed))
    batch = world.sequences_batch(own)
    neutral = world.token_reward[own] == 0
    frozen = reference(batch, ("hidden",))
    needs = ("divergence", "entropy")
    drawn = score(policy, batch, needs=needs, reference=frozen, divergence=REVERSE_KL)
    given = world.batch(pairs, torch.arange(min(len(pairs), samples // 2)))
    along = score(policy, given, needs=("divergence",), reference=reference(given, ("hidden",)))
    chosen, rejected = along.need("divergence").sum(-1).chunk(2)
    return WorldPoint(
        step,
        reward=float(world.reward(own).mean()),
        kl=float(drawn.need("divergence").sum(-1).mean()),
        chosen_kl=float(chosen.mean()),
        rejected_kl=float(rejected.mean()),
        entropy=float(drawn.need("entropy").sum(-1).mean()),
        neutral_kl=float((drawn.need("divergence")[:, 1:] * neutral).sum(-1).mean()),
    )


@torch.no_grad()
def sample_sequences(
    model: Any, world: PreferenceWorld, count: int, generator: torch.Generator
) -> Tensor:
    """[count, length] sequences of the model; the start token is never drawn again."""
    drawn = sample(
        model,
        torch.full((count, 1), world.start),
        max_new_tokens=world.length,
        processors=[lambda _, logits: logits[:, : world.vocabulary]],
        generator=generator,
    )
    return torch.tensor(drawn)


def searched(
    world: PreferenceWorld, policy: Any, starts: Tensor, widths: Sequence[int], copies: int = 8
) -> dict[str, Tensor]:
    """How a policy completes the first tokens of sequences [N, n], by the way it is searched.

    Args:
        widths: of beams; 1 is greedy. copies: samples of each start, drawn with the world's seed.

    Returns:
        {"sampling", "greedy", "beam of W"}: [rows, length - n] tokens.
    """
    prompts = [[world.start, *start] for start in starts.tolist()]
    rest = world.length - starts.shape[1]
    drawn = rollouts(policy, prompts, copies, max_new_tokens=rest, seed=world.seed)
    found = {"sampling": torch.tensor(drawn).flatten(0, 1)}
    for width in widths:
        name = "greedy" if width == 1 else f"beam of {width}"
        beams = beam_search_policy(policy, prompts, width, max_new_tokens=rest)
        found[name] = torch.tensor(beams)
    return found


def fine_tune(
    model: Any, world: PreferenceWorld, seed: int, steps: int, texts: int = 200, junk: float = 0.15
) -> Any:
    """A copy that has read noisy texts in a good style, the optimum of beta = 1.

    junk: the share of their tokens that are random.
    """
    generator = torch.Generator().manual_seed(seed)
    good = world.optimum(1.0).sample(texts, generator)
    noisy = torch.rand(good.shape, generator=generator) < junk
    random = torch.randint(world.vocabulary, good.shape, generator=generator)
    read = torch.where(noisy, random, good)

    def batches(_: torch.Generator) -> TokenBatch:
        return world.sequences_batch(read[torch.randint(texts, (32,), generator=generator)])

    options: dict[str, Any] = {"steps": steps, "learning_rate": 2e-3, "decay": 0.5, "clip": None}
    return train_copy(batches, NegativeLogLikelihood(), model, **options)[0]


def fresh_samples(model: Any, world: PreferenceWorld, count: int, seed: int = 12345) -> TokenBatch:
    """Sequences of a model as a batch; the same random numbers for every model."""
    generator = torch.Generator().manual_seed(seed)
    return world.sequences_batch(sample_sequences(model, world, count, generator))


def sampled_kl(policy: Any, other: Any, batch: TokenBatch) -> float:
    """KL(policy || other) of whole sequences in nats, estimated on samples of the policy."""
    own, base = (score(model, batch).need("logprob") for model in (policy, other))
    return float(sequence_sum(own - base, batch).mean())


def mean_rewards(
    model: Any, worlds: Sequence[PreferenceWorld], samples: int, seed: int
) -> list[float]:
    """Mean true rewards of a model's samples under several worlds of one language."""
    draw = torch.Generator().manual_seed(seed)
    sequences = sample_sequences(model, worlds[0], samples, draw)
    return [float(world.reward(sequences).mean()) for world in worlds]


def frontier_gap(ours: list[list[WorldPoint]], theirs: list[list[WorldPoint]]) -> float:
    """Mean difference of two methods' best rewards at equal KL (`gap_at_equal`)."""
    return gap_at_equal([frontier(points) for points in ours], [frontier(p) for p in theirs])
