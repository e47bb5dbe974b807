"""Advantages from token rewards: generalised estimates with a critic, or returns less a baseline.

    TokenReward   r_t = -kl (log pi_old - log pi_ref)(y_t|s_t) + [t = last] R(x, y)
    GAE           A = whitened gae(r, V; gamma, lam),    V the critic's, or without one the mean
                  reward-to-go of all completions of the batch at the same position
    RewardToGo    A_t = G_t - b_t,    G_t = r_t + gamma G_{t+1},    b_t the mean of G_t over the
                  batch's or the group's completions at the same position, or 0

A reward is an axis of its own, [B, T] or, of n reward functions, [B, T, n]; methods that differ in
it alone replace it.

Sources: High-Dimensional Continuous Control Using Generalized Advantage Estimation (arXiv
1506.02438); Training Language Models to Follow Instructions with Human Feedback (arXiv 2203.02155).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from tokenry.core.checks import one_of, within
from tokenry.learn.policy.advantages import gae, positional_baseline, reward_to_go, whiten
from tokenry.learn.policy.critic import Critic
from tokenry.learn.policy.rollout_batch import RolloutBatch
from tokenry.learn.policy.token_rewards import token_rewards

Reward = Callable[[RolloutBatch], Tensor]  # -> [B, T] or [B, T, n]


@dataclass(frozen=True)
class TokenReward:
    """A completion's reward on its last token, and the pull to the reference on every one.

    Args:
        kl: weight of the penalty on leaving the reference, per nat, in [0, inf).
        clamp: bound on the size of R, in (0, inf); None leaves it alone.
        several: R is [B, n], and so is the result, [B, T, n], each reward with the whole penalty.
    """

    kl: float = 0.0
    clamp: float | None = None
    several: bool = False

    rollout_needs: ClassVar[tuple[str, ...]] = ("reference.logprob",)

    def __post_init__(self) -> None:
        within(self, "[0, inf)", "kl")
        within(self, "(0, inf)", "clamp", optional=True)

    def __call__(self, rollouts: RolloutBatch) -> Tensor:
        if not self.several:
            return self.of(rollouts, rollouts.reward)
        rewards = rollouts.reward.reshape(len(rollouts.mask), -1).unbind(-1)
        return torch.stack([self.of(rollouts, reward) for reward in rewards], -1)

    def of(self, rollouts: RolloutBatch, reward: Tensor, dense: Tensor | None = None) -> Tensor:
        """The same, [B, T], from other rewards [B] and, if given, rewards of tokens [B, T]."""
        return token_rewards(
            rollouts.mask,
            reward,
            old_logprob=rollouts.old_logprob,
            reference_logprob=rollouts.logprob_of("reference"),
            kl=self.kl,
            dense=dense,
            reward_clamp=self.clamp,
        )


@dataclass(frozen=True)
class GAE:
    """Generalised advantage estimates of token rewards, [B, T], or [B, T, n] of n rewards.

    Args:
        reward: the tokens' rewards.
        gamma: discount, and the bias-variance trade, in [0, 1].
        lam: discount, and the bias-variance trade, in [0, 1].
        critic: gives the values and learns the returns. None: the batch's mean reward-to-go at
            each position.
        normalise: mean 0 and variance 1 over the batch's tokens, each reward by itself.
    """

    reward: Reward = field(default_factory=TokenReward)
    gamma: float = 1.0
    lam: float = 0.95
    critic: Critic | None = None
    normalise: bool = True

    def __post_init__(self) -> None:
        within(self, "[0, 1]", "gamma", "lam")

    @property
    def axes(self) -> tuple[Any, ...]:
        return (self.reward,) if self.critic is None else (self.reward, self.critic)

    def __call__(self, rollouts: RolloutBatch) -> Tensor:
        rewards, mask = self.reward(rollouts), rollouts.mask
        each = rewards.reshape(*mask.shape, -1).unbind(-1)
        values = None if self.critic is None else self.critic.of_rewards(rollouts, len(each))
        estimates = []
        for number, reward in enumerate(each):
            if values is None:
                value = positional_baseline(reward_to_go(reward, mask, self.gamma), mask)
            else:
                value = values[number].detach().masked_fill(~mask, 0.0)
            advantage, returns = gae(reward, value, mask, self.gamma, self.lam)
            if self.normalise:
                advantage = whiten(advantage, mask, of=returns)
            estimates.append((advantage, value, returns))
        stacked = (torch.stack(one, -1) for one in zip(*estimates, strict=True))
        advantage, value, returns = (one.reshape(rewards.shape) for one in stacked)
        if self.critic is not None:
            rollouts.keep(value=value, **{"return": returns})
        return advantage


@dataclass(frozen=True)
class RewardToGo:
    """What a token and those behind it earn, less what completions earn there on average, [B, T].

    Args:
        reward: the tokens' rewards. gamma: discount, in [0, 1].
        baseline: the mean over the "batch" or the "group" at the same position, or "none".
        leave_one_out: of the others only, which is unbiased.
    """

    reward: Reward = field(default_factory=TokenReward)
    gamma: float = 1.0
    baseline: Literal["none", "batch", "group"] = "group"
    leave_one_out: bool = True

    def __post_init__(self) -> None:
        within(self, "[0, 1]", "gamma")
        one_of("baseline", self.baseline, ("none", "batch", "group"))

    @property
    def axes(self) -> tuple[Any, ...]:
        return (self.reward,)

    def __call__(self, rollouts: RolloutBatch) -> Tensor:
        returns = reward_to_go(self.reward(rollouts), rollouts.mask, self.gamma)
        if self.baseline == "none":
            return returns
        group = rollouts.group if self.baseline == "group" else None
        return returns - positional_baseline(
            returns, rollouts.mask, group, leave_one_out=self.leave_one_out
        )
