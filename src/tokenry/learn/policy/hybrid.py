"""Hybrid surrogate: a token's ratio and its completion's, clipped each in its own region, mixed.

See `learn.policy.dhpo` for the equations; here are the functions of tensors alone.

Source: Orchestrating Tokens and Sequences: Dynamic Hybrid Policy Optimization for RLVR (arXiv
2601.05607). The scale of the entropy and the outer minimum are reconstructed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenry.core.aggregate import full_precision
from tokenry.learn.policy.surrogate import clip_surrogate

Bounds = tuple[float, float]


@torch.no_grad()
def entropy_weight(entropy: Tensor, mask: Tensor) -> Tensor:
    """Each row's entropies [B, T] from 0 at their least to 1 at their most; 1/2 if all are one."""
    entropy = full_precision(entropy)
    least = entropy.masked_fill(~mask, torch.inf).amin(-1, keepdim=True)
    width = entropy.masked_fill(~mask, -torch.inf).amax(-1, keepdim=True) - least
    scaled = (entropy - least) / width.masked_fill(width <= 0, 1.0)
    return torch.where(mask & (width > 0), scaled, 0.5)


def hybrid_surrogate(
    token: Tensor,
    sequence: Tensor,
    weight: Tensor | float,
    advantage: Tensor,
    token_clip: Bounds = (0.2, 0.2),
    sequence_clip: Bounds = (3e-4, 4e-4),
    dual: float | None = None,
    branch_min: bool = False,
) -> Tensor:
    """What is maximised, [B, T], from the ratios r and s [B, T], with gradient, and w, A."""
    if branch_min:
        kept = clip_surrogate(token, advantage, *token_clip)
        surrogate = weight * kept + (1 - weight) * clip_surrogate(
            sequence, advantage, *sequence_clip
        )
    else:
        free = (weight * token + (1 - weight) * sequence) * advantage
        low, high = token_clip
        bounded = weight * token.clamp(1 - low, 1 + high)
        low, high = sequence_clip
        bounded = (bounded + (1 - weight) * sequence.clamp(1 - low, 1 + high)) * advantage
        surrogate = torch.where(bounded < free, bounded, free)
    if dual is None:
        return surrogate
    least = torch.where(advantage < 0, dual * advantage, -torch.inf)
    return torch.where(surrogate < least, least, surrogate)
