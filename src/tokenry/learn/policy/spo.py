"""SPO: credit of segments, by the values of the states at their two ends, without a critic.

    A_t   = V(right end) - V(left end)         of the segment of t (`learn.policy.segments`); values
                                               are means of sampled rewards
    m_t   = 1 where pi_old(y_t | s_t) < rho, else 0
    loss  = sum_t m_t max( -A_t u_t, -A_t clip(u_t, 1 - c, 1 + c) ) / sum_t m_t  +  beta KL

    chain   states at cutpoints, judged by completions of their own (`sources.chain`); A is whitened
            over the tokens with m_t = 1
    tree    states where a tree of completions parts (`sources.tree`); segments without advantage
            are left out, every other one counts once

u_t = exp of the log-ratio, kept within +-10; m_t stands in the numerator and the denominator, so
that the mean is over the tokens where the policy had a choice. KL is k3 to the reference.

Source: Segment Policy Optimization: Effective Segment-Level Credit Assignment in RL for Large
Language Models (arXiv 2505.23564) and its code. Reconstructed: the KL's weight, the population
variance of the whitening. Ours: the tree's segments are learned from where they were drawn; its
replay buffer of segments is the trainer's `updates`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tokenry.core.checks import one_of, within
from tokenry.learn.objective import Example, objective
from tokenry.learn.policy.gradient import PolicyGradient, Preset
from tokenry.learn.policy.presets import pull
from tokenry.learn.policy.rollout_batch import RolloutBatch
from tokenry.learn.policy.segment_credit import ChainAdvantage, TreeAdvantage
from tokenry.learn.policy.surrogate import Clip

Form = Literal["chain", "tree"]
LARGEST_LOG_RATIO = 10.0


@dataclass(frozen=True)
class Bounded:
    """The gate: log-ratios within +-largest."""

    largest: float = LARGEST_LOG_RATIO

    def __call__(self, log_ratio: Tensor, rollouts: RolloutBatch) -> Tensor:
        return log_ratio.clamp(-self.largest, self.largest)


def _examples() -> list[Example]:
    def two_segments(batch, values):
        half = (batch.target.cumsum(-1) > 1).long()
        return 2 * torch.arange(len(batch.ids))[:, None] + half

    return [Example(SPO("tree", normalize=n), {"node": two_segments}) for n in (False, True)]


@objective("spo", paper=126, examples=_examples)
@dataclass(frozen=True)
class SPO(Preset):
    """Segment Policy Optimization.

    Args:
        form: "chain" (of source "chain") or "tree" (of source "tree").
        threshold: rho, in (0, 1].
        clip: in (0, inf).
        beta: weight of the KL to the reference, in [0, inf); 0 needs no reference.
        whiten: the chain's advantages. normalize: the tree's, by the spread of the siblings.
    """

    form: Form = "chain"
    threshold: float = 0.9
    clip: float = 0.2
    beta: float = 1e-4
    whiten: bool = True
    normalize: bool = False

    def __post_init__(self) -> None:
        one_of("form", self.form, ("chain", "tree"))
        within(self, "(0, 1]", "threshold")
        within(self, "(0, inf)", "clip")
        within(self, "[0, inf)", "beta")

    @property
    def rollout_source(self) -> str:  # type: ignore[override]
        return self.form

    def composed(self) -> PolicyGradient:
        chain = ChainAdvantage(self.threshold, self.whiten)
        advantage = chain if self.form == "chain" else TreeAdvantage(self.threshold, self.normalize)
        return PolicyGradient(
            advantage,
            clip=Clip(self.clip, self.clip),
            gate=Bounded(),
            regularizer=pull(self.beta),
            aggregation="token-mean",
            select=(advantage.kept,),
        )
