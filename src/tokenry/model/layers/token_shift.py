"""Token shift: every token is mixed with the one before it.

    y_t = mu * x_t + (1 - mu) * x_{t-1}      mu [D] learned, x_0 = 0, * by channel

The smallest layer that looks back: bigrams for D numbers, in front of anything.

Source: RWKV: Reinventing RNNs for the Transformer Era (arXiv 2305.13048), section 3.1; all channels
begin with one mu (ours).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from tokenry.core.checks import in_range
from tokenry.model.layers.base import layer


@layer("token-shift")
class TokenShift(nn.Module):
    """Mixes each token with its left neighbour.

    Args:
        size: D, the channels, in [1, inf).
        mu: the share of the token itself at first, in [0, 1]; default 0.5.
    """

    causal: ClassVar[bool] = True

    def __init__(self, size: int, mu: float = 0.5):
        super().__init__()
        in_range("size", size, "[1, inf)", integer=True)
        in_range("mu", mu, "[0, 1]")
        self.mu = nn.Parameter(torch.full((size,), float(mu)))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        own = x if mask is None else x.masked_fill(~mask[..., None], 0.0)
        before = pad(own[:, :-1], (0, 0, 1, 0))
        mixed = (own + (1 - self.mu) * (before - own)).to(x.dtype)
        return mixed if mask is None else mixed.masked_fill(~mask[..., None], 0.0)
