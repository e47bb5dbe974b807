"""f-DPO: what a divergence buys, exactly in tables of 64 outcomes and trained in the toy world.

The tables give each divergence's own optimum at every beta: expected reward, entropy, and how many
outcomes keep at least a tenth of their probability. They are compared at the same beta and at the
same expected reward. In the world, policies are trained on the same pairs at the same beta.
"""

from __future__ import annotations

from itertools import pairwise
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from tokenry.core.divergences import divergence_named
from tokenry.lab.preference_world import (
    WorldPoint,
    fit_reference,
    sample_sequences,
    train_in_world,
)
from tokenry.learn.preference.f_dpo import FDPO, optimal_policy
from tokenry.papers.base import Measurement, Outcome, Paper
from tokenry.tasks.worlds.preference import PreferenceWorld

DIVERGENCES = ("reverse_kl", "jensen_shannon_sum", "alpha:0.5", "forward_kl")
BETA = 0.1  # the paper's
TABLES, OUTCOMES = 20, 64
BETAS = torch.logspace(-2.5, 2, 40, dtype=torch.float64).tolist()
LEVELS = (0.3, 0.6, 0.9)  # of the way from the reference's reward to the best outcome's
WORLDS = 2
SETTINGS: dict[str, Any] = {
    "steps": 150,
    "batch_size": 32,
    "learning_rate": 3e-4,
    "measure_every": 50,
    "samples": 512,
}


def reproduce(seed: int) -> Outcome:
    """Tables of seed `seed`; two worlds, seeds `100 seed` and `100 seed + 1`."""
    curves = {name: optima(seed, name) for name in DIVERGENCES}
    equal_reward = {name: at_levels(curves, name) for name in DIVERGENCES}
    same_beta = {
        name: optimum_values(*tables(seed), name, BETA).mean(-1).tolist() for name in DIVERGENCES
    }
    measurements = [
        Measurement(f"tables, {name} at beta {BETA}: {what}", value, unit, seed)
        for name, values in same_beta.items()
        for (what, unit), value in zip(QUANTITIES, values, strict=True)
    ]
    measurements += [
        Measurement(f"tables, {name} at {level:.0%} of the reward: {what}", value, unit, seed)
        for name, by_level in equal_reward.items()
        for level, values in zip(LEVELS, by_level, strict=True)
        for (what, unit), value in zip(QUANTITIES[1:], values[1:], strict=True)
    ]
    worlds = [trained(100 * seed + offset) for offset in range(WORLDS)]
    for offset, world in enumerate(worlds):
        measurements += [
            Measurement(f"world, {name} at beta {BETA}: {what}", value, unit, 100 * seed + offset)
            for name, (points, distinct) in world.items()
            for what, value, unit in (
                ("true reward", points[-1].reward, "per sequence"),
                ("entropy", points[-1].entropy, "nats"),
                ("KL(policy || reference)", points[-1].kl, "nats"),
                ("distinct trigrams", distinct, ""),
            )
        ]
        final = world["forward_kl"][0][-1]
        at_equal = entropy_at(world["reverse_kl"][0], final.reward)
        label = "world, reverse_kl: entropy when its reward was forward_kl's final one"
        measurements.append(Measurement(label, at_equal, "nats", 100 * seed + offset))

    entropy = {name: mean(values[1] for values in equal_reward[name]) for name in DIVERGENCES}
    more_diverse = entropy["forward_kl"] > entropy["alpha:0.5"] > entropy["reverse_kl"]
    distinct = {name: mean(world[name][1] for world in worlds) for name in DIVERGENCES}
    keeps_variety = max(distinct["forward_kl"], distinct["alpha:0.5"]) >= distinct["reverse_kl"]
    return Outcome(
        held=more_diverse and keeps_variety,
        needs="optima of 20 tables at the same expected reward (mean over three levels): entropy "
        "under forward KL > alpha 0.5 > reverse KL; and in the toy world at the same beta, mean of "
        "two: distinct trigrams under forward KL or alpha 0.5 at least as many as under reverse KL",
        measurements=measurements,
        reason=_reason(more_diverse, entropy, equal_reward, worlds),
        figure=lambda figure: _draw(figure, curves),
    )


QUANTITIES = (("expected reward", ""), ("entropy", "nats"), ("outcomes kept", ""))


def tables(seed: int) -> tuple[Tensor, Tensor]:
    """Reference log-probabilities and rewards of all tables, [TABLES, OUTCOMES] each."""
    generator = torch.Generator().manual_seed(seed)
    reference, reward = torch.randn(2, TABLES, OUTCOMES, generator=generator, dtype=torch.float64)
    return reference.log_softmax(-1), reward


def optimum_values(reference: Tensor, reward: Tensor, name: str, beta: float) -> Tensor:
    """The `QUANTITIES` of the optimum in each table, [3, TABLES]."""
    found = optimal_policy(reference, reward, beta=beta, divergence=divergence_named(name))
    probability = found.exp()
    return torch.stack(
        [
            (probability * reward).sum(-1),
            torch.special.entr(probability).sum(-1),
            (probability >= 0.1 * reference.exp()).double().mean(-1),
        ]
    )


def optima(seed: int, name: str) -> Tensor:
    """The same at every beta, [betas, 3, TABLES]."""
    reference, reward = tables(seed)
    return torch.stack([optimum_values(reference, reward, name, beta) for beta in BETAS])


def at_levels(curves: dict[str, Tensor], name: str) -> list[list[float]]:
    """Means over tables at each reward level, linear between neighbouring betas."""
    low = torch.stack([curve[:, 0].amin(0) for curve in curves.values()]).amax(0)
    high = torch.stack([curve[:, 0].amax(0) for curve in curves.values()]).amin(0)
    found = []
    for level in LEVELS:
        wanted, rows = low + level * (high - low), []
        for table in range(TABLES):
            rewards = curves[name][:, 0, table].flip(0)  # grows as beta falls
            after = int((rewards >= wanted[table]).nonzero()[0])
            share = (wanted[table] - rewards[after - 1]) / (rewards[after] - rewards[after - 1])
            values = curves[name][:, :, table].flip(0)
            rows.append(torch.lerp(values[after - 1], values[after], share))
        found.append(torch.stack(rows).mean(0).tolist())
    return found


def trained(seed: int) -> dict[str, tuple[list[WorldPoint], float]]:
    """Each divergence's policy: its measurements on the way, and distinct trigrams at the end."""
    world = PreferenceWorld(seed=seed, length=8)
    generator = torch.Generator().manual_seed(seed)
    reference = fit_reference(world, seed)
    pairs = world.pairs(2000, generator, sample_sequences(reference, world, 4000, generator))
    found = {}
    for name in DIVERGENCES:
        policy, points = train_in_world(
            FDPO(BETA, name), world, reference, pairs, seed=seed, **SETTINGS
        )
        drawn = sample_sequences(policy, world, 512, torch.Generator().manual_seed(54321))
        trigrams = drawn.unfold(1, 3, 1).reshape(-1, 3)
        found[name] = points, len(trigrams.unique(dim=0)) / len(trigrams)
    return found


def entropy_at(points: list[WorldPoint], reward: float) -> float:
    """The entropy of a trajectory where it first passed a reward, linear in between."""
    for before, after in pairwise(points):
        if before.reward <= reward < after.reward:
            share = (reward - before.reward) / (after.reward - before.reward)
            return before.entropy + share * (after.entropy - before.entropy)
    return points[-1].entropy


def _reason(
    more_diverse: bool,
    entropy: dict[str, float],
    equal_reward: dict[str, list[list[float]]],
    worlds: list[dict[str, tuple[list[WorldPoint], float]]],
) -> str:
    def listed(values: Any) -> str:
        pairs = zip(DIVERGENCES, values, strict=True)
        return ", ".join(f"{name} {value:.3g}" for name, value in pairs)

    def trained_means(value: Any) -> str:
        return listed(mean(value(*world[name]) for world in worlds) for name in DIVERGENCES)

    kept = [mean(values[2] for values in equal_reward[name]) for name in DIVERGENCES]
    found = (
        f"trained at the same beta: distinct trigrams {trained_means(lambda _, d: d)}, but true "
        f"reward {trained_means(lambda points, _: points[-1].reward)}. Optima at equal reward: "
        f"entropy {listed(entropy.values())} nats, share of outcomes that keep a tenth of their "
        f"probability {listed(kept)}"
    )
    if more_diverse:
        return found
    return (
        found + ". So the entropy is paid for in reward: of all policies of a given expected "
        "reward the tilt, to which reverse KL leads, has the least KL from the reference, hence "
        "under a flat reference the most entropy. What the others keep is coverage"
    )


def _draw(figure: Any, curves: dict[str, Tensor]) -> None:
    entropy, kept = figure.subplots(1, 2)
    for name, curve in curves.items():
        values = curve.mean(-1)
        entropy.plot(values[:, 0], values[:, 1], label=name)
        kept.plot(values[:, 0], values[:, 2], label=name)
    entropy.set(xlabel="expected reward of the optimum", ylabel="entropy, nats")
    kept.set(xlabel="expected reward of the optimum", ylabel="outcomes with a tenth of their mass")
    entropy.legend()


PAPER = Paper(
    number=172,
    key="f-dpo",
    title="Beyond Reverse KL: Generalizing Direct Preference Optimization with Diverse Divergence "
    "Constraints",
    arxiv="2309.16240",
    role="objective",
    family="preference",
    claim="The divergence of DPO trades alignment for diversity: reverse KL aligns most and is "
    "least diverse, forward KL the other way round, Jensen-Shannon and alpha lie between.",
    reproduce=reproduce,
    threads=1,
)
