"""Credit of segments: the axes that turn the rewards of judged states, or of a tree's leaves, into
advantages of tokens, and say which tokens learn.

    chain    V(s) = mean reward of the completions that judge s (`sources.chain`)
    tree     V(node) = mean reward of the leaves below it (`sources.tree`)
    kept     tokens of probability below `threshold` when they were sampled; of a chain's
             completions alone; of a tree's segments each once, and those with an advantage

The equations are those of `learn.policy.segments`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokenry.core.errors import InputError
from tokenry.learn.policy.rollout_batch import RolloutBatch
from tokenry.learn.policy.segments import segment_advantages, tree_advantages, whitened


@dataclass(frozen=True)
class ChainAdvantage:
    """The axis of completions with judged states: A [B, T]."""

    threshold: float
    whiten: bool

    rollout_needs: ClassVar[tuple[str, ...]] = ("policy.logprob",)

    def kept(self, rollouts: RolloutBatch, advantage: Tensor) -> Tensor:
        """Which tokens are learned from, [B, T]."""
        own = rollouts.batch.column("state") < 0
        return own[:, None] & (rollouts.old_logprob.exp() < self.threshold)

    def __call__(self, rollouts: RolloutBatch) -> Tensor:
        batch, reward = rollouts.batch, rollouts.total_reward
        if "state" not in batch.columns:
            raise InputError('SPO\'s chain judges states: roll out with source="chain"')
        state, boundary = batch.column("state"), batch.column("boundary")
        judge = state >= 0
        empty = reward.new_zeros(int(max(state.max(), boundary.max())) + 2)
        count = empty.index_add(0, state[judge], torch.ones_like(reward[judge]))
        value = empty.index_add(0, state[judge], reward[judge]) / count.clamp_min(1)
        known = (boundary >= 0) & (count[boundary] > 0)  # its judges may have failed
        advantage = segment_advantages(value[boundary], known, reward, rollouts.mask)
        if not self.whiten:
            return advantage
        return whitened(advantage, rollouts.mask & self.kept(rollouts, advantage))


@dataclass(frozen=True)
class TreeAdvantage:
    """The axis of trees of completions: A [B, T]."""

    threshold: float
    normalize: bool

    rollout_needs: ClassVar[tuple[str, ...]] = ("policy.logprob",)

    def _of(self, rollouts: RolloutBatch) -> tuple[Tensor, Tensor]:
        if "node" not in rollouts.batch.columns:
            raise InputError('SPO\'s tree needs completions that part: roll out with source="tree"')
        node, reward = rollouts.batch.column("node"), rollouts.total_reward
        return tree_advantages(node, rollouts.mask, reward, rollouts.group, self.normalize)

    def kept(self, rollouts: RolloutBatch, advantage: Tensor) -> Tensor:
        """Which tokens are learned from, [B, T]."""
        unsure = rollouts.old_logprob.exp() < self.threshold
        return self._of(rollouts)[1] & unsure & (advantage != 0)

    def __call__(self, rollouts: RolloutBatch) -> Tensor:
        return self._of(rollouts)[0]
