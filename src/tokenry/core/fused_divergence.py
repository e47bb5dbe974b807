"""Divergences of two models' distributions from their hidden states, without the logits.

With q the softmax of z, p another model's, and s_v = dF/d log q_v,

    F = sum_v q_v f(p_v / q_v)                             dF/dz_v  = s_v - q_v sum_u s_u

tile by tile, as in `fused`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tokenry.core.divergence import Comparison
from tokenry.core.divergences import FORWARD_KL
from tokenry.core.errors import ShapeError, VocabularyError
from tokenry.core.f_divergence import FDivergence
from tokenry.core.fused import fused_support, fused_top_k
from tokenry.core.linear_head import LinearHead, check_fits, sum_dtype
from tokenry.core.tiles import LogSum, TileGradients, row_tiles, vocabulary_tiles


def fused_divergence(
    hidden: Tensor,
    head: LinearHead,
    other_hidden: Tensor,
    other_head: LinearHead,
    divergence: FDivergence | Comparison = FORWARD_KL,
) -> Tensor:
    """D_f(p || q) per token, [N]: q from `hidden`, `head`; p from the other (reference, teacher).

    Differentiable in the first pair only: the other side is a constant. To differentiate in p, swap
    the sides and take the mirrored divergence (KL(q || p) is REVERSE_KL).

    Args:
        divergence: which, or a `Comparison` with a temperature for both sides and, for a bound from
            below at a fraction of the work in the backward pass, the k likeliest tokens of p.
    """
    how = divergence if isinstance(divergence, Comparison) else Comparison(divergence)
    if how.temperature != 1.0:
        head, other_head = (
            replace(one, temperature=one.temperature * how.temperature)
            for one in (head, other_head)
        )
    check_fits(hidden, head)
    check_fits(other_hidden, other_head)
    if len(hidden) != len(other_hidden):
        raise ShapeError(f"{len(hidden)} tokens on one side, {len(other_hidden)} on the other")
    if len(head.weight) != len(other_head.weight):
        raise VocabularyError(
            f"vocabularies of {len(head.weight)} and {len(other_head.weight)} tokens "
            "have no divergence; project both on shared bytes (text.alignment)"
        )
    if how.top_k is None:
        return _Divergence.apply(
            hidden, head.weight, head.bias, head, other_hidden.detach(), other_head, how.kind
        )
    ids = fused_top_k(other_hidden, other_head, how.top_k).ids
    with torch.no_grad():
        p = fused_support(other_hidden, other_head, ids)
    q = fused_support(hidden, head, ids)
    kept = how.kind.terms(p.logprob, q.logprob).sum(-1)
    return kept + how.kind.terms(p.rest, q.rest) if how.tail else kept


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: LinearHead,
        other_hidden: Tensor,
        other_head: LinearHead,
        divergence: FDivergence,
    ) -> Tensor:
        dtype = sum_dtype(hidden.dtype)
        value = hidden.new_zeros(len(hidden), dtype=dtype)
        slope = torch.zeros_like(value)
        normalisers = torch.empty(2, len(hidden), dtype=dtype, device=hidden.device)
        for rows, states in row_tiles(hidden):
            others = other_hidden[rows].to(dtype)
            for side, (inner, outer) in enumerate(((states, head), (others, other_head))):
                total = LogSum(inner)
                for _, logits in vocabulary_tiles(inner, outer):
                    total.add(logits)
                normalisers[side, rows] = total.value
            for _, logq, logp in _paired_tiles(rows, states, head, others, other_head, normalisers):
                value[rows] += divergence.terms(logp, logq).sum(-1)
                if ctx.needs_input_grad[0] or ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
                    slope[rows] += divergence.slopes(logp, logq).sum(-1)
        ctx.save_for_backward(hidden, weight, bias, other_hidden, normalisers, slope)
        ctx.sides = (head.softcap, head.temperature, other_head, divergence)
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple:
        (gradient,) = gradients
        hidden, weight, bias, other_hidden, normalisers, slope = ctx.saved_tensors
        softcap, temperature, other_head, divergence = ctx.sides
        head = LinearHead(weight, bias, softcap, temperature)
        collect = TileGradients(hidden, head, ctx.needs_input_grad[:3])
        for rows, states in row_tiles(hidden):
            others = other_hidden[rows].to(states.dtype)
            collect.start(rows, states)
            for columns, logq, logp in _paired_tiles(
                rows, states, head, others, other_head, normalisers
            ):
                bound = collect.cap_slope(logq + normalisers[0, rows, None])
                d_logits = divergence.slopes(logp, logq)
                d_logits.sub_(logq.exp_().mul_(slope[rows, None])).mul_(gradient[rows, None])
                d_logits.masked_fill_(gradient[rows, None] == 0, 0.0)  # also where it is infinite
                collect.add(columns, d_logits, bound)
        return (*collect.results(), None, None, None, None)


def _paired_tiles(
    rows: slice,
    states: Tensor,
    head: LinearHead,
    others: Tensor,
    other_head: LinearHead,
    normalisers: Tensor,
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """(columns, log q, log p): tiles of both models' log-probabilities, [n, v] each."""
    sides = zip(vocabulary_tiles(states, head), vocabulary_tiles(others, other_head), strict=True)
    for (columns, logits), (_, other_logits) in sides:
        yield (
            columns,
            logits.sub_(normalisers[0, rows, None]),
            other_logits.sub_(normalisers[1, rows, None]),
        )
