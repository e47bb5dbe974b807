"""PAMA on two rewards that pull apart and come on scales 10 to 1.

A small language has positive words after which a text likes to end. The first reward is the share
of positive words in a text, times ten; the second its length. Trained from one fitted model at the
same settings: PPO on the sum of both rewards (fixed equal weights, which the scales decide), exact
MGDA (the shortest mixture of the rewards' gradients), and PAMA under both scopes. Progress is each
reward's share of what it could still gain; a method is as good as the reward that it served worse.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor, nn

from tokenry.core.aggregate import aggregate
from tokenry.core.batch import TokenBatch
from tokenry.core.scores import Scores
from tokenry.lab.on_policy_world import (
    OnPolicyPoint,
    fit_likelihood,
    roll_out,
    train_on_policy,
)
from tokenry.lab.toy_model import toy_model
from tokenry.learn.compute import compute_loss, compute_scores
from tokenry.learn.objective import Loss
from tokenry.learn.policy.min_norm import mgda_weights
from tokenry.learn.policy.pama import PAMA
from tokenry.learn.policy.pro import PRO
from tokenry.learn.policy.surrogate import clip_surrogate, importance_ratio
from tokenry.learn.reference import FrozenModel
from tokenry.papers.base import Measurement, Outcome, Paper

SEEDS = 2
WORDS, POSITIVE, END, START, LONGEST = 15, 4, 15, 16, 12
SCALES = (10.0, 1.0)
LAST = 5  # steps whose rollouts measure the end of a run: 320 texts
REPEATS = 9  # of a timed update
SETTINGS: dict[str, Any] = {
    "steps": 30,
    "batch_size": 64,
    "max_new_tokens": LONGEST,
    "eos": END,
    "learning_rate": 3e-3,
}


@dataclass(frozen=True)
class ExactMGDA(PAMA):
    """The baseline: each reward's own gradient by a backward pass of its own, mixed to the shortest
    vector in their hull. PPO's surrogate with negative advantages, as published."""

    def modules(self, model: Any) -> nn.ModuleDict:
        made = super().modules(model)
        made["policy"] = _Unregistered(model)
        return made

    def __call__(
        self,
        batch: TokenBatch,
        policy: Scores,
        reference: Scores | None = None,
        modules: nn.ModuleDict | None = None,
        **others: Any,
    ) -> Loss:
        assert modules is not None
        ratio = importance_ratio(policy.need("logprob"), batch.column("old_logprob"), batch.target)
        losses = [
            -aggregate(
                clip_surrogate(ratio, advantage, self.clip, self.clip), batch.target, "token-mean"
            )
            for advantage in batch.column("advantage").unbind(-1)
        ]
        weights_of = list(modules["policy"].models[0].parameters())  # type: ignore[union-attr]
        gradients = [
            torch.cat(
                [g.flatten() for g in torch.autograd.grad(loss, weights_of, retain_graph=True)]
            )
            for loss in losses
        ]
        mixture = mgda_weights(torch.stack(gradients))
        loss = (mixture * torch.stack(losses)).sum()
        return Loss(loss, {f"weight/{number}": c for number, c in enumerate(mixture)})


class _Unregistered(nn.Module):
    """Keeps a model at hand without making its weights weights of its own."""

    def __init__(self, model: Any):
        super().__init__()
        self.models = (model,)


METHODS = {
    "fixed weights": PRO(kl=0.02),
    "mgda": ExactMGDA(kl=0.02),
    "pama": PAMA(kl=0.02),
    "pama, one weight per batch": PAMA(kl=0.02, scope="batch"),
}


@dataclass(frozen=True)
class TwoRewardWorld:
    """A Markov language with ends, and a policy that was fitted to it."""

    seed: int

    @cached_property
    def base(self) -> Any:
        generator = torch.Generator().manual_seed(self.seed)
        chain = torch.randn(START + 1, START, generator=generator).softmax(-1)
        chain[:, END] = 0.0
        end = torch.full((START + 1, 1), 0.06)
        end[:POSITIVE], end[START] = 0.35, 0.0
        chain = chain / chain.sum(-1, keepdim=True) * (1 - end)
        chain[:, END] = end[:, 0]

        def draw() -> TokenBatch:
            ids = torch.full((64, 1 + LONGEST), START)
            for step in range(LONGEST):
                following = chain[ids[:, step]]
                ids[:, step + 1] = torch.multinomial(following, 1, generator=generator)[:, 0]
            ended = (ids == END).cumsum(1) - (ids == END).long() > 0
            target = ~ended
            target[:, 0] = False
            return TokenBatch(ids.masked_fill(ended, 0), ~ended, target)

        return fit_likelihood(
            toy_model(START + 1, 1 + LONGEST, self.seed, width=48), draw, steps=120
        )

    def train(self, method: str) -> list[OnPolicyPoint]:
        return train_on_policy(
            METHODS[method],
            self.base,
            torch.tensor([[START]]),
            scaled_rewards,
            self.base,
            seed=self.seed,
            **SETTINGS,
        )[1]

    def update_seconds(self, method: str) -> float:
        """Median time of a loss with its backward passes, without sampling."""
        goal, policy = METHODS[method], toy_model(START + 1, 1 + LONGEST, self.seed, width=48)
        modules, reference = goal.modules(policy), FrozenModel(self.base)
        batch = roll_out(policy, torch.full((64, 1), START), max_new_tokens=LONGEST, eos=END)
        batch = batch.with_columns(reward=scaled_rewards(batch))
        found = compute_scores(
            goal, batch, policy, reference, modules=modules, needs=goal.rollout_needs, grad=False
        )
        batch = goal.prepare(batch, found.policy, found.reference, modules=modules)
        seconds = []
        for _ in range(REPEATS):
            begin = time.perf_counter()
            compute_loss(goal, batch, policy, reference, modules=modules).loss.backward()
            seconds.append(time.perf_counter() - begin)
        return median(seconds)


def reproduce(seed: int) -> Outcome:
    """Two worlds, seeds `seed` and `seed + 1`."""
    paths: dict[str, list[list[tuple[float, ...]]]] = {method: [] for method in METHODS}
    gains: dict[str, list[tuple[float, ...]]] = {method: [] for method in METHODS}
    for number in range(seed, seed + SEEDS):
        world = TwoRewardWorld(number)
        start = roll_out(
            world.base, torch.full((1000, 1), START), max_new_tokens=LONGEST, eos=END, seed=number
        )
        before = rewards(start).mean(0).tolist()
        for method in METHODS:
            path = [
                tuple(value / scale for value, scale in zip(point.reward, SCALES, strict=True))
                for point in world.train(method)
            ]
            end = [mean(values) for values in zip(*path[-LAST:], strict=True)]
            gains[method].append(tuple((b - a) / (1 - a) for a, b in zip(before, end, strict=True)))
            paths[method].append(path)
    worst = {method: mean(min(run) for run in runs) for method, runs in gains.items()}
    timed = {method: TwoRewardWorld(seed).update_seconds(method) for method in ("mgda", "pama")}
    measurements = [
        Measurement(f"{method}: {what}", value, "of the possible gain", seed + offset)
        for method, runs in gains.items()
        for offset, run in enumerate(runs)
        for what, value in (
            ("gain in positive words", run[0]),
            ("gain in length", run[1]),
            ("the smaller gain", min(run)),
        )
    ]
    measurements += [
        Measurement(f"{method}: time of an update", 1000 * seconds, "ms", seed)
        for method, seconds in timed.items()
    ]
    faster = timed["pama"] < timed["mgda"]
    figures = ", ".join(f"{method} {value:+.2f}" for method, value in worst.items())
    return Outcome(
        held=worst["pama"] > max(worst["fixed weights"], 0.0) and faster,
        needs="means over 2 worlds: the smaller of both rewards' normalised gains is larger with "
        "PAMA than with fixed equal weights on rewards scaled 10 to 1, and positive; an update of "
        "PAMA takes less time than one of exact MGDA",
        measurements=measurements,
        reason=f"the smaller gain: {figures}; an update {timed['pama'] / timed['mgda']:.0%} of "
        "MGDA's time",
        figure=lambda figure: _draw(figure, paths),
    )


def rewards(batch: TokenBatch) -> Tensor:
    """Share of positive words, and length as a share of the longest, both in [0, 1], [B, 2]."""
    words = batch.target & (batch.ids != END)
    length = words.sum(-1)
    positive = ((batch.ids < POSITIVE) & words).sum(-1)
    return torch.stack([positive / length.clamp_min(1), length / LONGEST], -1)


def scaled_rewards(batch: TokenBatch) -> Tensor:
    return rewards(batch) * torch.tensor(SCALES)


def _draw(figure: Any, paths: dict[str, list[list[tuple[float, ...]]]]) -> None:
    axes = figure.subplots()
    for color, (method, runs) in enumerate(paths.items()):
        for number, run in enumerate(runs):
            label = method if number == 0 else None
            axes.plot(*zip(*run, strict=True), color=f"C{color}", alpha=0.7, label=label)
            axes.plot(*run[-1], marker="o", color=f"C{color}")
    axes.set(xlabel="share of positive words", ylabel="length, of the longest")
    axes.legend()


PAPER = Paper(
    number=134,
    key="pama",
    title="Pareto Multi-Objective Alignment for Language Models",
    arxiv="2508.07768",
    role="objective",
    family="preference",
    claim="Balancing several rewards by one clipped advantage each serves all of them, where fixed "
    "weights serve the one with the largest scale, at the price of one backward pass.",
    reproduce=reproduce,
    threads=1,
)
