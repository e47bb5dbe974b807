"""RTO: PPO whose tokens are rewarded one by one, by what DPO has already learnt about them.

    r_t = clip( beta1 [log pi_dpo(y_t|s_t) - log pi_ref(y_t|s_t)], +-dense_clip )
          - kl [log pi_old(y_t|s_t) - log pi_ref(y_t|s_t)]  +  [t = last] clip(R(x, y), +-10)

then PPO on r. pi_dpo is a policy that DPO trained on the preference pairs, now frozen; pi_ref its
reference, pi_old the policy that wrote y, R the reward of the whole text. In the token-level
decision process with an entropy bonus, beta1 log pi_dpo/pi_ref equals the true token reward up to
a difference of values of successive states, which changes no optimal policy: the sparse reward of
a text becomes a dense one, so fewer samples tell which token earned it.

    objective: rto
    frozen: {dpo: runs/dpo}
    rewards: [rewards.py:quality]

Source: DPO Meets PPO: Reinforced Token Optimization for RLHF (arXiv 2404.18922), with the released
code's order (scale, clip, then KL and final reward) and its defaults.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokenry.core.checks import within
from tokenry.learn.objective import objective
from tokenry.learn.policy.advantages import masked
from tokenry.learn.policy.ppo import PPO
from tokenry.learn.policy.returns import Reward
from tokenry.learn.policy.rollout_batch import RolloutBatch
from tokenry.learn.policy.token_rewards import token_rewards


@torch.no_grad()
def rto_token_rewards(
    dpo_logprob: Tensor,
    reference_logprob: Tensor,
    old_logprob: Tensor,
    mask: Tensor,
    reward: Tensor | None,
    *,
    beta1: float = 0.05,
    dense_clip: float = 0.05,
    kl: float = 0.01,
    reward_clamp: float | None = 10.0,
) -> Tensor:
    """The equation above, [B, T] from log-probabilities [B, T] and rewards [B]."""
    dense = beta1 * (masked(dpo_logprob, mask) - masked(reference_logprob, mask))
    if dense_clip > 0:
        dense = dense.clamp(-dense_clip, dense_clip)
    return token_rewards(
        mask,
        reward,
        old_logprob=old_logprob,
        reference_logprob=reference_logprob,
        kl=kl,
        dense=dense,
        reward_clamp=reward_clamp,
    )


@dataclass(frozen=True)
class DenseReward:
    """The axis: `rto_token_rewards` of the rollouts; see `RTO` for the fields."""

    beta1: float = 0.05
    dense_clip: float = 0.05
    reward_weight: float = 1.0
    kl: float = 0.01
    reward_clamp: float | None = 10.0

    rollout_needs: ClassVar[tuple[str, ...]] = ("reference.logprob", "dpo.logprob")

    def __call__(self, rollouts: RolloutBatch) -> Tensor:
        return rto_token_rewards(
            rollouts.logprob_of("dpo"),
            rollouts.logprob_of("reference"),
            rollouts.old_logprob,
            rollouts.mask,
            self.reward_weight * rollouts.reward,
            beta1=self.beta1,
            dense_clip=self.dense_clip,
            kl=self.kl,
            reward_clamp=self.reward_clamp,
        )


@objective("rto", paper=83)
@dataclass(frozen=True)
class RTO(PPO):
    """Reinforced Token Optimization: PPO on dense rewards from a frozen DPO policy, "dpo".

    beta1: weight of the dense reward, per nat, in [0, inf).
    dense_clip: its bound per token, in [0, inf); 0 for no bound.
    reward_weight: factor of the sequence reward before its clamp, in [0, inf); rewards are expected
        on a scale of about 1.
    kl, reward_clamp and the rest as in PPO, with RTO's defaults.
    """

    kl: float = 0.01
    reward_clamp: float | None = 10.0
    beta1: float = 0.05
    dense_clip: float = 0.05
    reward_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, "[0, inf)", "beta1", "dense_clip", "reward_weight")

    @property
    def reward(self) -> Reward:
        return DenseReward(
            self.beta1, self.dense_clip, self.reward_weight, self.kl, self.reward_clamp
        )
