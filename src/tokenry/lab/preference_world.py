"""Training small transformers in the toy preference world: reference, preference run, measurement.

What papers of the family share: a 2-layer transformer fitted to the world's language is the
reference; a copy of it is trained on Bradley-Terry pairs by any objective; on the way its true
reward, its divergences from the reference (whole vocabulary at every token) and its entropy are
measured on fresh samples.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from tokenry.core.divergences import REVERSE_KL
from tokenry.decode.sample import sample
from tokenry.lab.table import Table
from tokenry.lab.toy_model import toy_model
from tokenry.lab.toys import trained
from tokenry.learn.compute import compute_loss
from tokenry.learn.fit import fit, linear
from tokenry.learn.objective import Objective
from tokenry.learn.reference import FrozenModel
from tokenry.model.score import score
from tokenry.tasks.worlds.preference import Pairs, PreferenceWorld


@dataclass(frozen=True)
class WorldPoint:
    """A policy measured. Sums are over a sequence, in nats.

    step: optimizer steps so far. reward: mean true reward of samples. kl: KL(policy || reference)
    over samples of the policy. chosen_kl, rejected_kl: KL(reference || policy) along the chosen and
    rejected training completions. entropy: of the policy, over its samples.
    """

    step: int
    reward: float
    kl: float
    chosen_kl: float
    rejected_kl: float
    entropy: float


def world_model(world: PreferenceWorld, seed: int, width: int = 64, layers: int = 2) -> Any:
    """An untrained causal transformer over the world's tokens and its start token."""
    size = world.vocabulary + 1
    return toy_model(size, world.length + 1, seed, width=width, layers=layers, start=world.start)


def fit_reference(
    world: PreferenceWorld, seed: int = 0, *, steps: int = 300, batch_size: int = 128
) -> Any:
    """A transformer fitted to fresh samples of the language by maximum likelihood; kept."""

    def train(model: Any) -> None:
        def loss(step: int, generator: torch.Generator) -> Tensor:
            batch = world.sequences_batch(world.language.sample(batch_size, generator))
            scores = score(model, batch, needs=("logprob",), grad=True)
            return -scores.need("logprob").sum() / batch.target.sum()

        halfway = linear(decay=0.5)
        fit(loss, model, steps=steps, learning_rate=3e-3, schedule=halfway, clip=None, seed=seed)

    return trained(lambda: world_model(world, seed), train, repr(world), seed, steps, batch_size)


POINT = {
    "true reward": ("reward", "per sequence"),
    "KL(policy || reference)": ("kl", "nats"),
    "chosen sequence KL": ("chosen_kl", "nats"),
    "rejected sequence KL": ("rejected_kl", "nats"),
    "sample entropy": ("entropy", "nats"),
}
"""What a `WorldPoint` is called in a table of measurements: label -> (field, unit)."""


def add_point(
    table: Table, name: str, point: WorldPoint, seed: int, labels: Iterable[str] = tuple(POINT)
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

    def held_out(self, count: int) -> Tensor:
        """Further sequences of the reference, [count, length]: others at each call."""
        return sample_sequences(self.reference, self.world, count, self._data[2])

    def train(self, objective: Objective, **options: Any) -> tuple[Any, list[WorldPoint]]:
        """The policy trained from the reference, and its measurements on the way."""
        names = ("steps", "batch_size", "learning_rate", "measure_every", "samples")
        settings: dict[str, Any] = {name: getattr(self, name) for name in names}
        settings["seed"] = self.world.seed
        pairs = options.pop("pairs", self.pairs)
        return train_in_world(objective, self.world, self.reference, pairs, **(settings | options))


def frontier(points: Iterable[WorldPoint]) -> list[tuple[float, float]]:
    """(KL, true reward) of a trajectory."""
    return [(point.kl, point.reward) for point in points]


def train_in_world(
    objective: Objective,
    world: PreferenceWorld,
    reference: Any,
    pairs: Pairs,
    *,
    steps: int = 300,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    seed: int = 0,
    measure_every: int = 50,
    samples: int = 1024,
    frozen: Mapping[str, Any] | None = None,
    columns: Mapping[str, Tensor] | None = None,
    modules: Any = None,
) -> tuple[Any, list[WorldPoint]]:
    """Train a copy of the reference on the pairs; the policy and its measurements on the way.

    The same seed gives every objective the same batches. frozen: further frozen models by name.
    columns: the data columns that the objective needs, [2, N, length] per token or [2, N] per row:
    those of the chosen, then of the rejected sequences. modules: the objective's own weights, made
    with `objective.modules(model)`; when left out they are made here.
    """
    policy = copy.deepcopy(reference).requires_grad_(True).train()
    held = FrozenModel(reference)
    others = {name: FrozenModel(model) for name, model in (frozen or {}).items()}
    if modules is None and hasattr(objective, "modules"):
        modules = objective.modules(policy)  # type: ignore[attr-defined]
    if not getattr(objective, "trains_policy", True):
        policy.requires_grad_(False)
    weights = [*policy.parameters(), *([] if modules is None else modules.parameters())]

    def measure(step: int) -> WorldPoint:
        return measure_in_world(policy, world, held, pairs, step, samples=samples)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(pairs), (batch_size,), generator=generator)
        batch = world.batch(pairs, index)
        batch = batch.with_columns(
            **{name: _of_rows(column, index) for name, column in (columns or {}).items()}
        )
        return compute_loss(objective, batch, policy, held, frozen=others, modules=modules).loss

    points = [measure(0)]
    fit(
        loss,
        weights,
        steps=steps,
        learning_rate=learning_rate,
        seed=seed,
        observe=lambda step, _: points.append(measure(step)),
        every=measure_every,
    )
    return policy.eval(), points


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


def reward_at_kl(points: list[WorldPoint], kl: float) -> float | None:
    """The reward a trajectory had when its KL first passed `kl`, by linear interpolation."""
    for before, after in pairwise(points):
        low, high = sorted((before.kl, after.kl))
        if low <= kl <= high and high > low:
            share = (kl - before.kl) / (after.kl - before.kl)
            return before.reward + share * (after.reward - before.reward)
    return None


def frontier_gap(
    ours: list[list[WorldPoint]], theirs: list[list[WorldPoint]], levels: int = 9
) -> float:
    """Mean difference of two methods' best rewards at equal KL, over the KLs that both passed.

    Each method is a list of trajectories (one for each setting that it was tried with); at each
    KL its best trajectory counts.
    """
    bounds = [(points[0].kl, max(p.kl for p in points)) for points in (*ours, *theirs)]
    split = len(ours)
    low = max(min(a for a, _ in bounds[:split]), min(a for a, _ in bounds[split:]))
    high = min(max(b for _, b in bounds[:split]), max(b for _, b in bounds[split:]))
    gaps = []
    for level in range(levels):
        kl = low + (high - low) * level / (levels - 1)
        best = [
            max(
                (r for r in (reward_at_kl(points, kl) for points in method) if r is not None),
                default=None,
            )
            for method in (ours, theirs)
        ]
        if best[0] is not None and best[1] is not None:
            gaps.append(best[0] - best[1])
    return sum(gaps) / len(gaps) if gaps else 0.0
