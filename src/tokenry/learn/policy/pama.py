"""PAMA: several rewards at once, balanced by one number per reward instead of by their gradients.

For each of n rewards, with its own advantage A'_i,t (whitened, so that no scale decides):

    A_i = max(A'_i, 0)                         "Noon", no negative: only what was good is learnt
    L_i = mean_t min( u_t A_i,t, clip(u_t, 1 - clip, 1 + clip) A_i,t )
    maximise  sum_i c_i L_i,     c = argmin_{c in simplex} | sum_i c_i a_i |

where a_i is the advantage of reward i where its clip is inactive: a bound on the norm of the
direction common to all rewards, least at the number in [min a, max a] nearest to 0
(`min_norm_scalars`). With Noon every a_i >= 0: the reward that is behind gets the weight. Under
scope="token" every token is a problem of its own; under "batch" a_i is the mean over tokens, which
follows the shape of a reward's advantages (few large ones give a small mean).

Source: Pareto Multi-Objective Alignment for Language Models (arXiv 2508.07768), Theorem 1 and
Noon PPO. Reconstructed: the scope of a_i (the default served both rewards in the reproduction), the
weights among the many that give 0 (the extreme pair), whitening before Noon, what is clipped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from tokenry.core.aggregate import aggregate
from tokenry.core.checks import one_of, within
from tokenry.learn.objective import objective
from tokenry.learn.policy.critic import Critic
from tokenry.learn.policy.gradient import PolicyGradient, Preset
from tokenry.learn.policy.min_norm import min_norm_scalars
from tokenry.learn.policy.returns import GAE, TokenReward
from tokenry.learn.policy.rollout_batch import RolloutBatch
from tokenry.learn.policy.surrogate import Clip, clip_surrogate, unclipped

Scope = Literal["batch", "token"]


def noon(advantages: Tensor) -> Tensor:
    """No negative advantages."""
    return advantages.clamp_min(0.0)


@torch.no_grad()
def pareto_advantage(
    ratio: Tensor, advantages: Tensor, mask: Tensor, *, clip: float = 0.2, scope: Scope = "token"
) -> tuple[Tensor, Tensor]:
    """sum_i c_i A_i, [B, T], and c: [n], or [n, B, T] under scope="token".

    ratio: u, [B, T]. advantages: A'_i before Noon, [n, B, T]. As no A_i is negative, the clipped
    surrogate of this sum is the sum of the clipped surrogates.
    """
    advantages = noon(advantages).masked_fill(~mask, 0.0)
    moving = unclipped(ratio, advantages, clip, clip)
    active = torch.where(moving, advantages, 0.0)  # I(A_i)
    if scope == "batch":
        active = torch.stack([aggregate(each, mask, "token-mean") for each in active])
    weights, _ = min_norm_scalars(active)
    spread = weights[:, None, None] if scope == "batch" else weights
    return (spread * advantages).sum(0), weights


def pama_loss(
    ratio: Tensor, advantages: Tensor, mask: Tensor, *, clip: float = 0.2, scope: Scope = "token"
) -> tuple[Tensor, Tensor]:
    """The loss, a scalar, and the weights; ratio with gradient, see `pareto_advantage`."""
    advantage, weights = pareto_advantage(ratio, advantages, mask, clip=clip, scope=scope)
    return -aggregate(clip_surrogate(ratio, advantage, clip, clip), mask, "token-mean"), weights


@dataclass(frozen=True)
class Pareto:
    """The axis that reshapes advantages [B, T, n] into `pareto_advantage`."""

    clip: float
    scope: Scope

    @property
    def separable(self) -> bool:
        return self.scope == "token"  # one weight for the batch couples its rows

    def __call__(self, advantage: Tensor, ratio: Tensor, rollouts: RolloutBatch) -> Tensor:
        mixed, weights = pareto_advantage(
            ratio, advantage.movedim(-1, 0), rollouts.mask, clip=self.clip, scope=self.scope
        )
        for number, weight in enumerate(weights):
            rollouts.report(f"weight/{number}", weight)
        return mixed


@objective("pama", paper=134)
@dataclass(frozen=True)
class PAMA(Preset):
    """Pareto Multi-objective Alignment of several rewards, `row.reward` [B, n].

    kl: weight of the KL penalty inside every reward, in [0, inf). clip: in (0, 1), as in PPO.
    gamma, lam: in [0, 1], as in PPO. scope: "token" or "batch".
    normalise: whiten each reward's advantages; without it, scales decide.
    objectives: n, the number of rewards, whole, in [1, inf), for the critic: with critic=True each
        reward has a value head of its own, trained on its own returns.
    value_weight: in [0, inf), as in PPO. value_clip: in (0, inf), as in PPO.
    """

    kl: float = 0.2
    clip: float = 0.2
    gamma: float = 1.0
    lam: float = 0.95
    scope: Scope = "token"
    normalise: bool = True
    critic: bool = False
    objectives: int = 2
    value_weight: float = 0.1
    value_clip: float = 0.2

    def __post_init__(self) -> None:
        within(self, "[0, inf)", "kl", "value_weight")
        within(self, "(0, 1)", "clip")
        within(self, "[0, 1]", "gamma", "lam")
        within(self, "(0, inf)", "value_clip")
        within(self, "[1, inf)", "objectives", integer=True)
        one_of("scope", self.scope, get_args(Scope))

    @property
    def num_rewards(self) -> int:
        return self.objectives

    def composed(self) -> PolicyGradient:
        heads = Critic(self.objectives, self.value_weight, self.value_clip)
        critic = heads if self.critic else None
        return PolicyGradient(
            GAE(TokenReward(self.kl, several=True), self.gamma, self.lam, critic, self.normalise),
            clip=Clip(self.clip, self.clip),
            reshape=(Pareto(self.clip, self.scope),),
            aggregation="token-mean",
        )
