"""Attention of a few queries that reads shared keys once.

Several query heads share a key head. A masked attention kernel wants as many key heads as query
heads, so transformers repeats the keys and values for it, in every layer of every pass; for a tree
of a few guesses that takes up to as long as the attention itself. Here the queries of a group stand
below each other instead, on the one head that they share:

    query [B, H, q, D]  ->  [B, Hkv, H / Hkv · q, D],        mask [B, 1, q, k]  ->  H / Hkv times

which are the same numbers up to the order of summation. Everything else goes the way of `sdpa`:
many queries, no mask, heads of their own, masks by head, gradients, other devices.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

IMPLEMENTATION = "tokenry_grouped"
MOST_ROWS = 256  # queries of a group; with more of them the repeated keys weigh little
REPEATED = "tokenry_repeated"


@contextmanager
def grouped_queries(model: Any) -> Iterator[None]:
    """While it lasts, a model whose attention is `sdpa` attends this way."""
    config = model.config.get_text_config(decoder=True)
    switch = config._attn_implementation == "sdpa"
    if switch:
        model.set_attn_implementation(IMPLEMENTATION)
    try:
        yield
    finally:
        if switch and config._attn_implementation == IMPLEMENTATION:
            model.set_attn_implementation("sdpa")


def grouped_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, None]:
    """The attention function under the name IMPLEMENTATION."""
    B, H, q, D = query.shape
    group = H // key.shape[1]
    mask = attention_mask
    if (
        mask is None
        or mask.shape[1:] != (1, q, key.shape[2])
        or group == 1
        or group * q > MOST_ROWS
        or query.requires_grad
        or query.device.type != "cpu"
        or dropout
        or any(options.get(name) is not None for name in ("position_bias", "s_aux", "softcap"))
    ):
        return sdpa_attention_forward(
            module, query, key, value, mask, dropout=dropout, scaling=scaling, **options
        )
    output = torch.nn.functional.scaled_dot_product_attention(
        query.reshape(B, -1, group * q, D),
        key,
        value,
        attn_mask=repeated(mask, group, query.dtype),
        scale=scaling,
    )
    return output.reshape(B, H, q, -1).transpose(1, 2).contiguous(), None


def repeated(mask: Tensor, group: int, dtype: torch.dtype) -> Tensor:
    """The additive mask of a group's queries, [B, 1, group · q, k]. It goes with the mask, which
    all layers of a pass share."""
    known = getattr(mask, REPEATED, None)
    if known is not None and known.shape[2] == group * mask.shape[2] and known.dtype == dtype:
        return known
    added = mask
    if mask.dtype == torch.bool:
        added = torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)
    wide = added.to(dtype).repeat(1, 1, group, 1)
    setattr(mask, REPEATED, wide)
    return wide


AttentionInterface.register(IMPLEMENTATION, grouped_attention)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
