"""Regularisers: a pull towards the reference, per token, to be minimised.

With x_t = log pi(y_t|s_t) - log pi_ref(y_t|s_t) and r_t the importance ratio,

    KL            weight * k1 | k2 | k3 of x, on request times r
    Divergence    weight * f(exp(-x)) r,  the estimate of D_f(pi_ref || pi) from own samples, or the
                  divergence of the two distributions at s_t itself

Sources: DeepSeekMath (arXiv 2402.03300), eq. 4 (k3); DeepSeek-V3.2 (arXiv 2512.02556), the ratio.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from tokenry.core.checks import one_of, within
from tokenry.core.divergences import divergence_named
from tokenry.core.f_divergence import FDivergence
from tokenry.core.kl_estimators import k1, k2, k3
from tokenry.learn.policy.rollout_batch import RolloutBatch
from tokenry.learn.policy.surrogate import LARGEST_LOG_RATIO

ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}


@dataclass(frozen=True)
class KL:
    """A Kullback-Leibler divergence to the reference, from the tokens that were sampled.

    Args:
        weight: per nat, > 0.
        estimator: k1 = x (its own gradient is no pull in expectation: use it in rewards),
            k2 = x^2 / 2 (gradient of the reverse KL on own samples), k3 = exp(-x) - 1 + x (>= 0,
            low variance; the gradient is that of the forward KL on own samples; x is kept above
            -20).
        corrected: multiply by the importance ratio, whose gradient makes k3's that of the reverse
            KL.
    """

    weight: float = 0.04
    estimator: Literal["k1", "k2", "k3"] = "k3"
    corrected: bool = False

    rollout_needs: ClassVar[tuple[str, ...]] = ("reference.logprob",)

    def __post_init__(self) -> None:
        within(self, "(0, inf)", "weight")
        one_of("estimator", self.estimator, ESTIMATORS)

    def __call__(self, logprob: Tensor, ratio: Tensor, rollouts: RolloutBatch) -> Tensor:
        shift = log_shift(logprob, rollouts)
        if self.estimator == "k3":
            shift = shift.clamp_min(-LARGEST_LOG_RATIO)  # its exponential would overflow
        estimate = self.weight * ESTIMATORS[self.estimator](shift)
        return estimate * ratio if self.corrected else estimate


@dataclass(frozen=True)
class Divergence:
    """D_f(pi_ref || pi) of any f-divergence; of "reverse_kl" it is KL(pi || pi_ref).

    Args:
        weight: > 0.
        kind: a divergence or its name (`core.divergence`).
        exact: over the whole vocabulary at each state, which needs the reference's distributions
            at every update; False estimates it from the tokens that were sampled.
    """

    weight: float = 0.04
    kind: FDivergence | str = "jensen_shannon"
    exact: bool = False

    def __post_init__(self) -> None:
        within(self, "(0, inf)", "weight")
        if isinstance(self.kind, str):
            divergence_named(self.kind)  # refuses an unknown name

    @property
    def divergence(self) -> FDivergence:
        return divergence_named(self.kind) if isinstance(self.kind, str) else self.kind

    @property
    def needs(self) -> tuple[str, ...]:
        return ("policy.divergence",) if self.exact else ()

    @property
    def rollout_needs(self) -> tuple[str, ...]:
        return () if self.exact else ("reference.logprob",)

    def __call__(self, logprob: Tensor, ratio: Tensor, rollouts: RolloutBatch) -> Tensor:
        if self.exact:
            return self.weight * rollouts.scores().need("divergence")
        return self.weight * ratio * self.divergence.f(-log_shift(logprob, rollouts))


def log_shift(logprob: Tensor, rollouts: RolloutBatch) -> Tensor:
    """log pi - log pi_ref of the tokens that were sampled, [B, T]; 0 elsewhere."""
    return torch.where(rollouts.mask, logprob - rollouts.logprob_of("reference"), 0.0)
