"""Monte-Carlo estimators of KL(policy || reference) from tokens sampled from the policy.

Functions of log_ratio = policy_logprob - reference_logprob of the sampled token, of any shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tokenry.core.aggregate import full_precision


def k1(log_ratio: Tensor) -> Tensor:
    """log_ratio. Unbiased; its variance is large and single values may be negative.

    Its place is the reward: as a constant there its policy gradient is the KL's. In a loss its own
    gradient is 0 in the mean.
    """
    return full_precision(log_ratio)


def k2(log_ratio: Tensor) -> Tensor:
    """log_ratio² / 2. Biased: agrees with the KL to second order in log_ratio only. Never negative.

    Its place is the loss: its gradient through policy_logprob, unlike that of k1 and k3, is the
    KL's in the mean.
    """
    return _where_finite(log_ratio, lambda x: x.square() / 2)


def k3(log_ratio: Tensor) -> Tensor:
    """exp(-log_ratio) - 1 + log_ratio. Unbiased where the policy covers the reference's support.

    Infinite for a token that either side excludes.

    Its place is the loss, times the importance ratio: its gradient is then the KL's; without the
    ratio it is that of KL(reference || policy). Never negative, and mostly of smaller variance
    than k1, whose control variate it is. Mass that the policy excludes is missing from the mean: it
    is then too low by the reference's mass there.
    """
    return _where_finite(log_ratio, lambda x: torch.expm1(-x) + x)


def _where_finite(log_ratio: Tensor, estimator: Callable[[Tensor], Tensor]) -> Tensor:
    """The estimator in float32 at least; +inf without gradient where the log-ratio is infinite."""
    log_ratio = full_precision(log_ratio)
    infinite = log_ratio.isinf()
    return estimator(log_ratio.masked_fill(infinite, 0.0)).masked_fill(infinite, math.inf)
