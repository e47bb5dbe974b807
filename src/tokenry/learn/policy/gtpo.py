"""GTPO: tokens that good and bad completions share are never pushed down.

In a group, P = {A > 0}, N = {A < 0}. Token v at position t is in conflict when it stands there in a
completion of P and in one of N; only the unbroken run from the first position counts, and likewise
the run from the last one, positions counted from the end.

    lambda_it = f b,   f (b) = W in the first (last) run of i in P,  0 in that of i in N,  1 else
    A~_i      = delta_i (A_i - gamma H_i),   H_i the completion's mean entropy, nats
    delta_i   = 0 if H_start < limit < H_i, else 1
    loss      = -(1/G) sum_i (A~_i / n_i) sum_t u_it lambda_it       no clip, no reference

H_start is the mean entropy of the completions of the first rollouts.

Source: GTPO: Trajectory-Based Policy Optimization in Large Language Models (arXiv 2508.03772); the
runs and their weights as the authors' code has them. There each completion's loss is also divided
by its number of conflicting tokens (`divide_by_conflicts`), here those with lambda != 1. Entropies
are those of the sampling policy, which is this update's policy when a rollout is used once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from tokenry.core.aggregate import per_sequence
from tokenry.core.checks import within
from tokenry.learn.objective import objective
from tokenry.learn.policy.conflicts import conflict_runs
from tokenry.learn.policy.gradient import PolicyGradient, Preset
from tokenry.learn.policy.groups import GroupAdvantage
from tokenry.learn.policy.rollout_batch import Column, RolloutBatch
from tokenry.learn.policy.surrogate import Clip


@dataclass(frozen=True)
class ConflictAdvantage:
    """The axis: A~ of each completion, with lambda left for the updates; see `GTPO`."""

    gamma: float
    limit: float
    start_entropy: float | None
    weight: float
    divide_by_conflicts: bool

    rollout_needs: ClassVar[tuple[str, ...]] = ("policy.entropy",)

    def module(self, model: object) -> nn.Module:
        made = nn.Module()
        made.register_buffer("start_entropy", torch.tensor(math.nan))
        return made

    def __call__(self, rollouts: RolloutBatch) -> Tensor:
        mask, group = rollouts.mask, rollouts.group
        advantage = GroupAdvantage()(rollouts)
        entropy = per_sequence(rollouts.old_entropy, mask, "mean").to(advantage.dtype)
        sign = advantage.sign()[:, None]
        factor = torch.where(sign > 0, self.weight, 0.0).to(advantage.dtype)
        weight = mask.to(advantage.dtype)
        runs = conflict_runs(rollouts.batch.ids, mask, advantage, group)
        for run in runs:
            weight = torch.where(run, weight * factor, weight)
        if self.divide_by_conflicts:
            weight = weight / (runs[0] | runs[1]).sum(-1, keepdim=True).clamp_min(1)
        rollouts.keep(conflict_weight=weight)
        kept = (self._start(rollouts, entropy) >= self.limit) | (entropy <= self.limit)
        return torch.where(kept, advantage - self.gamma * entropy, 0.0)

    def _start(self, rollouts: RolloutBatch, entropy: Tensor) -> Tensor:
        if self.start_entropy is not None:
            return entropy.new_tensor(self.start_entropy)
        state = rollouts.module(self)
        start: Tensor = state.start_entropy  # type: ignore[assignment]
        if not bool(start.isnan()):
            return start
        if state.training:  # an evaluation leaves no trace
            start.copy_(entropy.mean())
        return entropy.mean()


@objective("gtpo", paper=146)
@dataclass(frozen=True)
class GTPO(Preset):
    """Group-relative Trajectory-based Policy Optimization, without reference and without clip.

    Args:
        weight: W, of conflicting tokens in good completions, once for each run, in [1, inf).
        gamma: advantage that a nat of mean entropy costs, in [0, inf).
        limit: nats, in (0, inf]; a policy that began below it skips completions above it.
        start_entropy: nats, in [0, inf); None: that of the first rollouts, kept in the checkpoint.
        divide_by_conflicts: divide a completion's loss by how many of its tokens conflict.
    """

    weight: float = 2.0
    gamma: float = 0.1
    limit: float = math.log(2)
    start_entropy: float | None = None
    divide_by_conflicts: bool = False

    def __post_init__(self) -> None:
        within(self, "[1, inf)", "weight")
        within(self, "[0, inf)", "gamma")
        within(self, "(0, inf]", "limit")
        within(self, "[0, inf)", "start_entropy", optional=True)

    def composed(self) -> PolicyGradient:
        advantage = ConflictAdvantage(
            self.gamma, self.limit, self.start_entropy, self.weight, self.divide_by_conflicts
        )
        return PolicyGradient(
            advantage,
            clip=Clip(None, None),
            weights=(Column("conflict_weight"),),
            aggregation="sequence-mean",
        )
