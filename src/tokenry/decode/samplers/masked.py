"""Masked sampling: forbid what the constraint refuses, renormalise, draw.

    x ~ p(x) accept(x) / Z,    w = Z = Σ_x p(x) accept(x)

The draw is the one that every structured-output library makes. Alone it distorts the model: texts
whose early tokens look good and then force unlikely ones come out too often, because the Z of each
step is dropped. Kept as weights, the Z make the sample exact in the limit of many particles.

Source: common practice; stated as the baseline in "Fast Controlled Generation from Language Models
with Adaptive Weighted Rejection Sampling" (arXiv 2504.05410).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenry.decode.constraints.base import State
from tokenry.decode.samplers.base import (
    DEAD,
    NOTHING,
    Step,
    TokenSampler,
    drawn_tokens,
    fitted_mask,
    sampler,
)


@sampler("mask")
@dataclass(frozen=True)
class Masked(TokenSampler):
    """One mask of the vocabulary per token.

    A greedy choice is no draw and not properly weighted; its weight is the accepted mass all the
    same.

    Args:
        greedy: take the most probable accepted token.
    """

    greedy: bool = False

    def steps(
        self, logprobs: Tensor, states: Sequence[State], generator: torch.Generator
    ) -> list[Step]:
        V = logprobs.shape[-1]
        masks = torch.stack([fitted_mask(state, V) for state in states])  # [P, V]
        allowed = logprobs.masked_fill(~masks.to(logprobs.device), float("-inf"))
        log_mass = allowed.logsumexp(-1)  # [P]
        if self.greedy:
            tokens = allowed.argmax(-1)
        else:
            shifted = (allowed - log_mass.clamp(min=-1e30)[:, None]).double().exp()
            tokens = drawn_tokens(shifted.cumsum(-1), generator)
        return [
            Step(NOTHING, DEAD, masks=1) if mass == DEAD else Step(token, mass, masks=1)
            for token, mass in zip(tokens.tolist(), log_mass.tolist(), strict=True)
        ]
