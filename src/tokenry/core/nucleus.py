"""Nucleus: a distribution cut to its smallest set of likeliest tokens that holds enough mass."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenry.core.checks import in_range


def nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Logits [..., V] with -inf outside of the nucleus; their softmax is renormalised.

    A token stays while the mass of those likelier than it, ties by the smaller id, is below top_p.

    Args:
        logits: [..., V].
        top_p: in (0, 1]; 1 leaves the logits as they are.
    """
    in_range("top_p", top_p, "(0, 1]")
    if top_p == 1:
        return logits
    falling, order = logits.double().softmax(-1).sort(dim=-1, descending=True, stable=True)
    before = falling.cumsum(-1) - falling  # the likeliest token always stays
    outside = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= top_p)
    return logits.masked_fill(outside, -torch.inf)
