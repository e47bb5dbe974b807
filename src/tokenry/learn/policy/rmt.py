"""RMT: thinking before a text's hard tokens, rewarded by the guess; all others by plain likelihood.

Of every text one position is drawn (`sources.positions`), and G responses o_i = (thinking, guess)
at it; m is 1 on the text's other tokens, n their number:

    r_i    = (1 - w) [guess = y_pos] + w length_reward(thinking, budget)
    A_i    = (r_i - mean) / (std + 1e-4)                      over the responses of the text
    L_RL   = -(1/G) sum_i A_i sum_t log pi(o_it)  +  beta (1/G) sum_i sum_t KL_t
    L_NTP  = -(1/n) sum_t m_t log pi(y_t | y_<t)
    loss   = mean over texts of  L_RL + lambda L_NTP

KL_t is k3 of the sampled token. The gradient of A log pi is taken as that of A u, u the importance
ratio, the same at the first update. lambda = w = 0 is token-wise reinforcement alone (RPT).

Source: Reinforcement Mid-Training (arXiv 2509.24375). Reconstructed: w and beta; that L_NTP is a
mean over a text's tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenry.core.checks import within
from tokenry.learn.objective import Example, objective
from tokenry.learn.policy.gradient import PolicyGradient, Preset
from tokenry.learn.policy.groups import group_advantage
from tokenry.learn.policy.presets import pull
from tokenry.learn.policy.regularizers import KL
from tokenry.learn.policy.rollout_batch import Column, RolloutBatch
from tokenry.learn.policy.surrogate import Clip
from tokenry.learn.policy.token_curriculum import length_reward

SHARE, READ = "share", "read"
SHARES = Column(SHARE)


@dataclass(frozen=True)
class GuessAdvantage:
    """The axis: A [B], 0 for texts. Left for the updates: what a row's sum is multiplied by, so
    that the mean over rows is that over responses, or over texts ("share" [B, 1]); and which rows
    are texts ("read" [B, 1])."""

    length_weight: float

    def __call__(self, rollouts: RolloutBatch) -> Tensor:
        batch = rollouts.batch
        sampled, there = batch.column("sampled") > 0, rollouts.mask.any(-1)
        length = length_reward(batch.column("thinking"), batch.column("budget"))
        reward = (1 - self.length_weight) * batch.column("match") + self.length_weight * length
        share = torch.ones_like(reward)
        for kind in (sampled, ~sampled):
            share[kind] = there.sum().to(share) / (kind & there).sum().clamp_min(1)
        rollouts.keep(**{SHARE: share[:, None], READ: (~sampled).to(share)[:, None]})
        # a text is a group of its own
        texts = rollouts.group.max() + 1 + torch.arange(len(reward), device=reward.device)
        return group_advantage(reward, torch.where(sampled, rollouts.group, texts))


@dataclass(frozen=True)
class NextToken:
    """The regulariser: -lambda log pi / n on texts, the KL on responses."""

    weight: float
    pull: KL | None

    needs: ClassVar[tuple[str, ...]] = (f"token.{READ}", f"token.{SHARE}")

    @property
    def axes(self) -> tuple[Any, ...]:
        return () if self.pull is None else (self.pull,)

    def __call__(self, logprob: Tensor, ratio: Tensor, rollouts: RolloutBatch) -> Tensor:
        mask, read = rollouts.mask, rollouts.batch.column(READ) > 0
        share = rollouts.batch.column(SHARE).to(logprob.dtype)
        known = torch.where(mask, logprob, 0.0)
        values = -self.weight * known / mask.sum(-1, keepdim=True).clamp_min(1)
        pulled = torch.zeros_like(known)
        if self.pull is not None:
            pulled = self.pull(known, ratio, rollouts)
        return share * torch.where(read, values, pulled)


def _examples() -> list[Example]:
    columns = {
        "sampled": lambda _, reward: torch.ones_like(reward),
        "match": lambda _, reward: (reward > 0).to(reward),
        "thinking": lambda _, reward: torch.arange(len(reward)).to(reward),
        "budget": lambda _, reward: torch.full_like(reward, 4.0),
    }
    half = {"sampled": lambda _, reward: (torch.arange(len(reward)) < len(reward) // 2).to(reward)}
    return [Example(RMT(), columns), Example(RMT(), columns | half)]


@objective("rmt", paper=130, examples=_examples)
@dataclass(frozen=True)
class RMT(Preset):
    """Reinforcement Mid-Training, on rollouts of the source "positions".

    Args:
        ntp_weight: lambda of the likelihood of the other tokens, in [0, inf).
        length_weight: w of the length in the reward, in [0, 1].
        beta: weight of the KL to the reference, in [0, inf); 0 needs no reference.
    """

    ntp_weight: float = 0.1
    length_weight: float = 0.2
    beta: float = 0.01

    num_rewards: ClassVar[int] = 0
    rollout_source = "positions"

    def __post_init__(self) -> None:
        within(self, "[0, inf)", "ntp_weight", "beta")
        within(self, "[0, 1]", "length_weight")

    def composed(self) -> PolicyGradient:
        return PolicyGradient(
            GuessAdvantage(self.length_weight),
            clip=Clip(None, None),
            weights=(SHARES,),
            regularizer=NextToken(self.ntp_weight, pull(self.beta)),  # type: ignore[arg-type]
            aggregation="sequence-sum",
        )
