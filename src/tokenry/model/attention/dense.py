"""Softmax attention over all keys, and the same with the share of it that every key received."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import dropout as drop
from torch.nn.functional import scaled_dot_product_attention

from tokenry.model.attention.masks import ROWS, BlockOfQueries, StepMask, visible

CHUNK_ELEMENTS = 2**23  # probabilities formed at a time: 32 MB of float32


def attend_in_chunks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visible: BlockOfQueries,
    *,
    scaling: float,
    softcap: float | None = None,
    dropout: float = 0.0,
    counted: Callable[[int, int], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Softmax attention that also says how much of it every key received.

    query [B, H, q, D]; key, value [B, Hkv, k, D]; H / Hkv query heads share a key head. A query
    that sees nothing gets zeros. Memory: CHUNK_ELEMENTS probabilities at a time.

    Returns:
        Output [B, q, H, D] and received [B, Hkv, k], float32: the probabilities summed over the
        queries for which counted(start, stop) [B, rows] holds and over the query heads of the
        group.
    """
    B, H, q, D = query.shape
    heads, k = key.shape[1], key.shape[2]
    grouped = query.view(B, heads, H // heads, q, D)
    key = key.float().transpose(-1, -2).unsqueeze(2)  # [B, Hkv, 1, D, k]
    received = key.new_zeros(B, heads, k)
    outputs = []
    rows = max(1, CHUNK_ELEMENTS // (B * H * k))
    for start in range(0, q, rows):
        stop = min(start + rows, q)
        logits = grouped[:, :, :, start:stop].float() @ key * scaling  # [B, Hkv, G, rows, k]
        logits = capped(logits, softcap)
        seen = visible(start, stop).unsqueeze(2)
        probability = logits.masked_fill_(~seen, torch.finfo(torch.float32).min).softmax(-1)
        sees = seen.any(-1)  # [B, Hkv or 1, 1, rows]; a query that sees nothing is uniform so far
        with torch.no_grad():
            weight = sees if counted is None else sees & counted(start, stop)[:, None, None]
            weight = weight.float().expand(probability.shape[:-1]).flatten(2)
            received += torch.einsum("bhr,bhrk->bhk", weight, probability.flatten(2, 3))
        probability = drop(probability, dropout).to(value.dtype)
        outputs.append(probability @ value.unsqueeze(2) * sees.unsqueeze(-1))
    output = torch.cat(outputs, dim=3).reshape(B, H, q, value.shape[-1])
    return output.transpose(1, 2).contiguous(), received


def capped(logits: Tensor, softcap: float | None) -> Tensor:
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap


def attend_densely(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: StepMask,
    *,
    scaling: float,
    softcap: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attention to every key that the mask allows, [B, q, H, D]; the last q keys are the queries'.

    A long prompt is read ROWS queries at a time, each block against the keys up to its own.
    """
    options = {"scaling": scaling, "softcap": softcap, "dropout": dropout}
    q, past = query.shape[2], key.shape[2] - query.shape[2]
    if mask.causal and not past and softcap is None:
        return attend_to(query, key, value, None, is_causal=q > 1, **options)
    blocks = []
    for start in range(0, q, ROWS):
        stop = min(start + ROWS, q)
        end = past + (stop if mask.causal else q)  # nobody here sees later tokens
        blocks.append(
            attend_to(
                query[:, :, start:stop],
                key[:, :, :end],
                value[:, :, :end],
                visible(mask, start, stop, past, end),
                **options,
            )
        )
    return torch.cat(blocks, dim=1) if len(blocks) > 1 else blocks[0]


def attend_to(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visible: Tensor | None,
    *,
    scaling: float,
    softcap: float | None = None,
    dropout: float = 0.0,
    is_causal: bool = False,
) -> Tensor:
    """SDPA whose key heads are shared by groups of query heads: [B, q, H, D].

    One query per head is packed as a group's queries on the one key head: a key is then read once,
    where a repeated head would be read for each of them.

    Args:
        visible: bool [B or 1, 1, q, k]; None: all keys, or those up to the query with is_causal.
    """
    B, H, q, D = query.shape
    heads = key.shape[1]
    if softcap is not None:
        block = visible if visible is not None else query.new_ones(1, 1, q, key.shape[2]).bool()
        output, _ = attend_in_chunks(
            query,
            key,
            value,
            lambda start, stop: block[:, :, start:stop],
            scaling=scaling,
            softcap=softcap,
            dropout=dropout,
        )
        return output
    grouped = query.reshape(B, heads, H // heads, D) if q == 1 else query
    output = scaled_dot_product_attention(
        grouped,
        key,
        value,
        attn_mask=visible,
        dropout_p=dropout,
        scale=scaling,
        is_causal=is_causal,
        enable_gqa=q > 1 and heads != H,
    )
    return output.reshape(B, H, q, -1).transpose(1, 2).contiguous()
