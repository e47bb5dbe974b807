"""RTO in the toy preference world, with a reward that comes at the end of a text and is noisy.

A text's reward is the sum of its tokens' hidden rewards plus noise about five times their spread,
so that PPO must average over many samples to learn which token earned what. RTO sees the same and,
per token, what DPO learnt from 1,000 pairs. Both draw 32 texts a step; learning rate, lambda and
the weight of the dense reward did best on other seeds.
"""

from __future__ import annotations

from statistics import fmean

import torch
from torch import Tensor

from tokenry.core.batch import TokenBatch
from tokenry.lab.on_policy_world import samples_until, train_on_policy
from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import curves
from tokenry.lab.preference_world import PreferenceBench
from tokenry.lab.scale import Scale, at
from tokenry.lab.table import Table, over_seeds
from tokenry.learn.policy.ppo import PPO
from tokenry.learn.policy.rto import RTO
from tokenry.learn.preference.dpo import DPO
from tokenry.papers.base import Paper
from tokenry.tasks.worlds.preference import PreferenceWorld

NOISE = 10.0  # standard deviation, in units of one token's reward
SMOOTH = 3  # steps that a point of a curve is averaged over: 96 texts
METHODS = {
    "ppo": PPO(kl=0.05, lam=0.95),
    "rto": RTO(kl=0.05, lam=0.7, beta1=2.0, dense_clip=0.0, reward_clamp=None),
}
SHARE = "rto: share of ppo's samples until ppo's final reward"


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    """Twenty worlds, seeds from `100 seed`."""
    worlds, steps, size = at(
        scale,
        full=(20, 20, {"fit_steps": 120, "drawn": 2000, "steps": 80, "samples": 512}),
        smoke=(2, 4, {"fit_steps": 2, "drawn": 64, "steps": 2, "samples": 16}),
    )
    table, lines, drawing = Table(), {}, {"steps": steps, "batch_size": 32, "learning_rate": 5e-3}

    def trained(number: int) -> tuple[float, dict[str, list[tuple[float, float]]]]:
        world = PreferenceWorld(number, vocabulary=16, length=12)
        bench = PreferenceBench(
            world, fit_batch=64, batch_size=32, learning_rate=3e-4, measure_every=80, **size
        )
        dpo, points = bench.train(DPO(0.5))
        paths = {}
        for name, objective in METHODS.items():
            generator = torch.Generator().manual_seed(1000 + number)

            def noisy(batch: TokenBatch, generator: torch.Generator = generator) -> Tensor:
                noise = torch.randn(len(batch.ids), generator=generator)
                return world.batch_reward(batch) + NOISE * noise

            _, taken = train_on_policy(
                objective, bench.reference, world.prompt, noisy, bench.reference,
                frozen={"dpo": dpo}, max_new_tokens=world.length, seed=number, **drawing,
                observe=lambda batch: {"true": float(world.batch_reward(batch).mean())},
            )  # fmt: skip
            true = [point.observed["true"] for point in taken]
            paths[name] = [
                (taken[end - 1].samples, fmean(true[end - SMOOTH : end]))
                for end in range(SMOOTH, len(true) + 1)
            ]
        return points[-1].reward, paths

    for number, (dpo, paths) in over_seeds(trained, seed, worlds):
        lines |= {f"{name} [{number}]": path for name, path in paths.items()}
        ends = {f"{name}: final true reward": path[-1][1] for name, path in paths.items()}
        table.add_all({"dpo: true reward": dpo, **ends}, "per text", number)
        drawn, end = paths["ppo"][-1]
        table.add(SHARE, samples_until(paths["rto"], end) / drawn, "", number)
    return verdict(
        table,
        {f"{SHARE} is at most a half": table.below(SHARE, 0.5)},
        reason="a world where RTO never reached it counts with all of PPO's samples; what it saves "
        "depends on how little the sparse reward says about single tokens: in development, on "
        "other worlds, RTO needed half (noise 8) to four fifths (noise 2) of PPO's samples",
        plots=[curves(lines, "texts sampled", "true reward of a text")],
    )


PAPER = Paper(
    number=83,
    key="rto",
    title="DPO Meets PPO: Reinforced Token Optimization for RLHF",
    arxiv="2404.18922",
    role="objective",
    family="preference",
    claim="PPO on dense token rewards from a DPO policy reaches PPO's final level with a fraction "
    "of its samples.",
    reproduce=reproduce,
    threads=1,
)
