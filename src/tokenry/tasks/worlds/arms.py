"""Arms of a stream: many middling ones and one that is a little better, in any order.

p_i ~ Normal(0.5, 0.1) cut to [0, 0.8]  for K - 1 arms,     p* = 0.82
"""

from __future__ import annotations

import torch

from tokenry.core.checks import in_range

MEAN, SPREAD, MOST, BEST = 0.5, 0.1, 0.8, 0.82


def arm_means(arms: int, generator: torch.Generator) -> list[float]:
    """The means of K >= 1 arms in the order in which they come."""
    in_range("arms", arms, "[1, inf)", integer=True)
    normal = torch.distributions.Normal(0.0, 1.0)
    low, high = (float(normal.cdf(torch.tensor((x - MEAN) / SPREAD))) for x in (0.0, MOST))
    share = torch.rand(arms - 1, dtype=torch.float64, generator=generator)
    means = MEAN + SPREAD * normal.icdf(low + (high - low) * share)
    means = torch.cat([means, means.new_tensor([BEST])])
    return means[torch.randperm(arms, generator=generator)].tolist()
