"""PRO: reinforcement from several rewards, weighted for each prompt by a preference orchestrator.

    R(x, y) = sum_k w_k(x) r~_k(x, y),      w = (1 - mu) w_orchestrator(x) + mu w_user

then PPO on R with its KL penalty. r~_k are the K rewards as z-scores, w_orchestrator(x) the weights
that a small network predicts from the prompt alone (`orchestrator.fit_orchestrator`, which learns
them from preferred responses before this training; it stays as it is here). Fixed weights serve no
prompt well when prompts ask for different things: the loss grows with || w - w*(x) ||.

    rewards of the policy's samples [B, K] -> weights of their prompts [B, K] -> R [B] -> PPO

Source: Preference Orchestrator: Prompt-Aware Multi-Objective Alignment (arXiv 2511.10656), its use
in multi-objective RLHF. Reconstructed: how user weights are mixed in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from tokenry.core.aggregate import full_precision
from tokenry.core.checks import within
from tokenry.core.errors import InputError, ShapeError
from tokenry.learn.objective import objective
from tokenry.learn.policy.orchestrator import PreferenceOrchestrator, prompt_states
from tokenry.learn.policy.ppo import PPO
from tokenry.learn.policy.returns import Reward, TokenReward
from tokenry.learn.policy.rollout_batch import RolloutBatch


def weighted_reward(weights: Tensor, rewards: Tensor) -> Tensor:
    """One reward per row, [B], from weights and rewards [B, K]."""
    if weights.shape != rewards.shape:
        raise ShapeError(
            f"weights {[*weights.shape]} and rewards {[*rewards.shape]} must both be [B, K]"
        )
    return (full_precision(weights) * full_precision(rewards)).sum(-1)


@dataclass(frozen=True)
class OrchestratedReward:
    """The axis: several rewards as one, on the last token, under weights that suit the prompt.

    penalty: puts it there, with the pull to the reference. The others are `PRO`'s.
    """

    penalty: TokenReward
    orchestrator: PreferenceOrchestrator | str | None = None
    user_weights: tuple[float, ...] | None = None
    user_share: float = 0.0

    module_name: ClassVar[str] = "orchestrator"

    @property
    def rollout_needs(self) -> tuple[str, ...]:
        plain = self.penalty.rollout_needs
        return plain if self.orchestrator is None else (*plain, "reference.hidden")

    def module(self, model: Any) -> PreferenceOrchestrator | None:
        """The orchestrator, frozen."""
        given = self.orchestrator
        if isinstance(given, str):
            given = PreferenceOrchestrator.load(given)
        return None if given is None else given.requires_grad_(False)

    def weights(self, rollouts: RolloutBatch, count: int) -> Tensor:
        """The weights of each row's prompt, [B, count]."""
        device = rollouts.mask.device
        own = torch.full((count,), 1 / count, device=device)
        if self.user_weights is not None:
            own = torch.tensor(self.user_weights, device=device)
        predicted = own.expand(len(rollouts.mask), -1)
        if self.orchestrator is not None:
            states = prompt_states(rollouts.batch, rollouts.scores("reference"))
            predicted = rollouts.module(self)(states)
        if predicted.shape[-1] != count or len(own) != count:
            raise ShapeError(
                f"{count} rewards, but the orchestrator weighs {predicted.shape[-1]} and "
                f"user_weights are {len(own)}"
            )
        return (1 - self.user_share) * predicted + self.user_share * own

    def __call__(self, rollouts: RolloutBatch) -> Tensor:
        rewards = rollouts.reward.reshape(len(rollouts.mask), -1)  # [B, K]
        weights = self.weights(rollouts, rewards.shape[-1])
        if self.orchestrator is not None:
            rewards = cast(PreferenceOrchestrator, rollouts.module(self)).stats.normalise(rewards)
        mixed = weighted_reward(weights, rewards)
        rollouts.keep(reward=mixed, weights=weights)
        return self.penalty.of(rollouts, mixed)


@objective("pro", paper=141)
@dataclass(frozen=True)
class PRO(PPO):
    """Preference Orchestrator: PPO on `row.reward` [B, K] under weights that suit the prompt.

    orchestrator: a fitted `PreferenceOrchestrator` or the file that its `save` wrote; it reads the
        reference's hidden states and brings the statistics that normalise the rewards. None: no
        prompt-dependence and rewards as they come, that is ordinary multi-objective RLHF.
    user_weights: K numbers >= 0 that sum to 1, one's own priorities. None: equal ones.
    user_share: mu in [0, 1]; 0 trusts the orchestrator alone, 1 the user alone.
    kl and the rest as in PPO.
    """

    orchestrator: PreferenceOrchestrator | str | None = None
    user_weights: tuple[float, ...] | None = None
    user_share: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, "[0, 1]", "user_share")
        own = self.user_weights
        if own is not None and not (own and min(own) >= 0 and abs(sum(own) - 1) <= 1e-6):
            raise InputError(f"user_weights must be >= 0 and sum to 1, got {list(own)}")

    @property
    def num_rewards(self) -> int:
        """K, as far as the settings tell; without any, 2 stands for "several"."""
        if isinstance(self.orchestrator, PreferenceOrchestrator):
            return len(self.orchestrator.reward_mean)
        return 2 if self.user_weights is None else len(self.user_weights)

    @property
    def reward(self) -> Reward:
        penalty = TokenReward(self.kl, self.reward_clamp)
        return OrchestratedReward(penalty, self.orchestrator, self.user_weights, self.user_share)
