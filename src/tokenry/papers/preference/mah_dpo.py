"""MAH-DPO: two tastes that conflict, one trunk with two heads, and a dial between them.

A language of the toy preference world is judged by two hidden tables of token rewards, A and B,
that agree on little and contradict each other on four tokens. MAH-DPO trains one model with a head
for each; its heads are then mixed at five weights. It is compared with DPO on the union of the
pairs (which has one point to offer) and with two separate DPO models, all at the same beta.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from tokenry.lab.preference_world import fit_reference, sample_sequences, train_in_world
from tokenry.learn.preference.dpo import DPO
from tokenry.learn.preference.mah_dpo import MAHDPO, mixed_model
from tokenry.papers.base import Measurement, Outcome, Paper
from tokenry.tasks.worlds.preference import Pairs, PreferenceWorld

RUNS = 2
PAIRS = 1500  # of each taste
BETA = 0.1
STEPS, BATCH, RATE = 200, 32, 5e-4  # pairs of each taste in a batch: half of BATCH
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
SAMPLES = 1000

Point = tuple[float, float]
"""Mean true rewards under A and under B."""


@dataclass(frozen=True)
class Taste(PreferenceWorld):
    """The world's language with another table of rewards; pairs are labelled by it."""

    table: tuple[float, ...] = ()

    @property
    def token_reward(self) -> Tensor:
        return torch.tensor(self.table, dtype=torch.float64)


def reproduce(seed: int) -> Outcome:
    runs = [rewards(seed * 100 + run) for run in range(RUNS)]
    measurements, monotone, kept, ahead = [], [], [], []
    for run, found in enumerate(runs):
        measurements += [
            Measurement(f"{name}: reward {taste}", value, "per sequence", seed * 100 + run)
            for name, point in found.items()
            for taste, value in zip("AB", point, strict=True)
        ]
        front = [found[f"mah-dpo, weight of A {weight:g}"] for weight in WEIGHTS]
        start = found["reference"]
        monotone.append(all(a[0] < b[0] and a[1] > b[1] for a, b in pairwise(front)))
        kept += [
            (front[place][taste] - start[taste]) / (found[name][taste] - start[taste])
            for place, taste, name in ((-1, 0, "dpo on A"), (0, 1, "dpo on B"))
        ]
        worst = min(a for a, _ in found.values()), min(b for _, b in found.values())
        both = found["dpo on both"]
        ahead.append((hypervolume(front, worst), hypervolume([both], worst)))
    measurements += [
        Measurement("endpoints: share of the separate models' gain", mean(kept), "", seed),
        Measurement("hypervolume: mah-dpo", mean(ours for ours, _ in ahead), "reward^2", seed),
        Measurement("hypervolume: union", mean(union for _, union in ahead), "reward^2", seed),
    ]
    larger = mean(ours for ours, _ in ahead) > mean(union for _, union in ahead)
    held = all(monotone) and mean(kept) >= 0.9 and larger
    return Outcome(
        held=held,
        needs="in each world reward A rises and B falls with the weight of A; over the worlds, the "
        "one-hot ends keep at least 90 % of the separate models' gain over the reference, and the "
        "front's hypervolume (over the worst rewards of any model) is above that of DPO on both",
        measurements=measurements,
        reason=None
        if held
        else f"monotone: {monotone}; ends keep {mean(kept):.0%} of the separate models' gain; "
        f"hypervolumes {', '.join(f'{a:.2f} against {b:.2f}' for a, b in ahead)}",
        figure=lambda figure: _draw(figure, runs[0]),
    )


def rewards(seed: int) -> dict[str, Point]:
    """Every model's mean true rewards in one world."""
    world = PreferenceWorld(seed=seed)
    generator = torch.Generator().manual_seed(seed)
    reference = fit_reference(world, seed, steps=200, batch_size=64)
    tastes = [Taste(seed=seed, table=table) for table in tables(world)]
    drawn = [sample_sequences(reference, world, 2 * PAIRS, generator) for _ in tastes]
    pairs = [
        taste.pairs(PAIRS, generator, sequences)
        for taste, sequences in zip(tastes, drawn, strict=True)
    ]
    both = Pairs(*(torch.cat([getattr(p, s) for p in pairs]) for s in ("chosen", "rejected")))
    owner = torch.cat([torch.full((len(p),), float(n)) for n, p in enumerate(pairs)])

    def measured(model: Any) -> Point:
        texts = sample_sequences(model, world, SAMPLES, torch.Generator().manual_seed(seed))
        values = [float(taste.reward(texts).mean()) for taste in tastes]
        return values[0], values[1]

    def trained(goal: Any, data: Pairs, batch_size: int, **options: Any) -> Any:
        settings = {"steps": STEPS, "learning_rate": RATE, "measure_every": STEPS, "samples": 16}
        return train_in_world(
            goal, world, reference, data, seed=seed, batch_size=batch_size, **settings, **options
        )[0]

    goal = MAHDPO(beta=BETA)
    heads = goal.modules(reference).requires_grad_(True)
    trunk = trained(goal, both, BATCH, modules=heads, columns={"objective": owner.repeat(2, 1)})
    found = {"reference": measured(reference)}
    for weight in WEIGHTS:
        model = mixed_model(trunk, heads, [weight, 1 - weight])
        found[f"mah-dpo, weight of A {weight:g}"] = measured(model)
    found["dpo on both"] = measured(trained(DPO(BETA), both, BATCH))
    for name, own in zip("AB", pairs, strict=True):
        found[f"dpo on {name}"] = measured(trained(DPO(BETA), own, BATCH // 2))
    return found


def tables(world: PreferenceWorld) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Three liked and three disliked tokens each; two of either change sides from A to B."""
    first = world.token_reward
    liked, disliked = (first > 0).nonzero()[:, 0], (first < 0).nonzero()[:, 0]
    neutral = (first == 0).nonzero()[:, 0]
    second = torch.zeros_like(first)
    second[liked[:2]], second[disliked[:2]] = -1.0, 1.0
    second[neutral[0]], second[neutral[1]] = 1.0, -1.0
    return tuple(first.tolist()), tuple(second.tolist())


def hypervolume(points: list[Point], worst: Point) -> float:
    """Area that the points dominate above the worst rewards."""
    gains = sorted(((a - worst[0], b - worst[1]) for a, b in points), reverse=True)
    area, height = 0.0, 0.0
    for a, b in gains:  # from the right: a point adds what it rises above those to its right
        area += a * max(b - height, 0.0)
        height = max(height, b)
    return area


def _draw(figure: Any, found: dict[str, Point]) -> None:
    axes = figure.subplots()
    front = [point for name, point in found.items() if name.startswith("mah-dpo")]
    axes.plot(*zip(*front, strict=True), marker="o", label="MAH-DPO, mixed heads")
    for name, (a, b) in found.items():
        if not name.startswith("mah-dpo"):
            axes.scatter(a, b, label=name)
    axes.set(xlabel="true reward A", ylabel="true reward B")
    axes.legend()


PAPER = Paper(
    number=137,
    key="mah-dpo",
    title="Simultaneous Multi-objective Alignment Across Verifiable and Non-verifiable Rewards",
    arxiv="2510.01167",
    role="objective",
    family="preference",
    claim="One trunk with a head per objective serves conflicting preferences with little loss "
    "against separate models, and head weights steer the trade-off at inference.",
    reproduce=reproduce,
    threads=1,
)
