"""How far a proposal with rejection is from the model given the constraint, and what it costs.

With the model a, the constraint b, the proposal a', the target g = a b / Z and the output
g' = a' b / Z',

    KL(g || g') = E_g[log a/a'] - log Z/Z'       KL(g' || g) = log Z/Z' - E_g'[log a/a']
    KL(g || a') = KL(g || g') - log Z'

so that the last one bounds both the distortion and the log of the number of tries a text.

Source: Guaranteed Generation from Large Language Models (arXiv 2410.06716).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Divergences:
    """How far a guarded proposal is from the target, in nats, and what it costs.

    Attributes:
        target_output: KL(g || g').
        output_target: KL(g' || g).
        target_proposal: KL(g || a').
        acceptance: Z'.
    """

    target_output: float
    output_target: float
    target_proposal: float
    acceptance: float


def guard_divergences(
    target_ratio: Tensor,
    output_ratio: Tensor,
    log_z: float,
    log_acceptance: float,
    log_weights: Tensor | None = None,
) -> Divergences:
    """The divergences from log a(y) - log a'(y) of texts from g `[n]` and of texts from g' `[m]`.

    Args:
        log_z: log Z.
        log_acceptance: log Z'.
        log_weights: of the texts from g, where they were drawn from something else (for texts from
            g', log a/a').
    """
    weights = torch.zeros_like(target_ratio) if log_weights is None else log_weights
    log_ratio_of_z = log_z - log_acceptance
    target_output = float((weights.softmax(0) * target_ratio).sum()) - log_ratio_of_z
    return Divergences(
        target_output=target_output,
        output_target=log_ratio_of_z - float(output_ratio.mean()),
        target_proposal=target_output - log_acceptance,
        acceptance=math.exp(log_acceptance),
    )
