"""Linear + softmax without the logits: per-token numbers from hidden states, tile by tile.

A language model's head turns hidden states h [N, D] into logits z = h W^T [N, V], by far the
largest tensor of a training step: 1 GB for a thousand tokens and Gemma's vocabulary. Everything
that is wanted of it is a few numbers per token, so the logits are made one tile [n, v] at a time
(a few MB, which stay in the processor's cache), folded into running sums, and made again in the
backward pass:

    logsumexp  L = log sum_v exp z_v                       dL/dz_v  = p_v
    logprob    l = z_y - L                                 dl/dz_v  = [v = y] - p_v
    entropy    H = L - sum_v p_v z_v                       dH/dz_v  = -p_v (log p_v + H)
    rest       R = log sum_{v not in K} p_v                dR/dz_v  = [v not in K] p_v / e^R - p_v

Sums run in float32 (float64 for float64 inputs) whatever the dtype of the inputs. Gradients reach
the hidden states, the matrix and the bias.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from tokenry.core.checks import in_range
from tokenry.core.errors import ShapeError, VocabularyError
from tokenry.core.linear_head import LinearHead, check_fits, shape_in_place, sum_dtype
from tokenry.core.tiles import LogSum, TileGradients, row_tiles, vocabulary_tiles


class FusedScores(NamedTuple):
    """Per-token numbers, each [N]; those that were not asked for are None."""

    logprob: Tensor
    logsumexp: Tensor
    entropy: Tensor | None


class TopK(NamedTuple):
    """The k likeliest tokens, likeliest first.

    Attributes:
        ids: [N, k].
        logprob: [N, k].
    """

    ids: Tensor
    logprob: Tensor


class Support(NamedTuple):
    """A distribution on some tokens and one bucket for all others.

    Attributes:
        logprob: [N, k].
        rest: [N], log of the others' mass, -inf where there are none.
    """

    logprob: Tensor
    rest: Tensor


def fused_scores(
    hidden: Tensor, head: LinearHead, targets: Tensor, *, entropy: bool = False
) -> FusedScores:
    """Log-probability of each target, log-partition and (optionally) entropy, in nats.

    Differentiable in hidden, head.weight and head.bias.

    Args:
        hidden: [N, D].
        targets: [N] ids.

    Raises:
        ShapeError: shapes differ.
        VocabularyError: an id outside the vocabulary.
    """
    check_fits(hidden, head)
    if targets.shape != hidden.shape[:1]:
        raise ShapeError(f"targets must be [{len(hidden)}], got {list(targets.shape)}")
    if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < len(head.weight):
        raise VocabularyError(
            f"targets run from {int(targets.min())} to {int(targets.max())}, "
            f"the head has {len(head.weight)} tokens"
        )
    logprob, logsumexp, uncertainty = _Scores.apply(
        hidden, head.weight, head.bias, targets, head.softcap, head.temperature, entropy
    )
    return FusedScores(logprob, logsumexp, uncertainty if entropy else None)


def fused_support(hidden: Tensor, head: LinearHead, ids: Tensor) -> Support:
    """Log-probabilities of k different tokens of each row, and of all the others together.

    Differentiable in hidden, head.weight and head.bias; log of the rest is summed over the other
    tokens, not subtracted from 1, so that it is exact when small. Raises ShapeError and
    VocabularyError as `fused_scores` does.

    Args:
        hidden: [N, D].
        ids: [N, k].
    """
    check_fits(hidden, head)
    if ids.ndim != 2 or len(ids) != len(hidden):
        raise ShapeError(f"ids must be [{len(hidden)}, k], got {list(ids.shape)}")
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < len(head.weight):
        raise VocabularyError(
            f"ids run from {int(ids.min())} to {int(ids.max())}, the head has {len(head.weight)} "
            "tokens"
        )
    return Support(
        *_Support.apply(hidden, head.weight, head.bias, ids, head.softcap, head.temperature)
    )


@torch.no_grad()
def fused_top_k(hidden: Tensor, head: LinearHead, k: int) -> TopK:
    """The k >= 1 likeliest tokens and their log-probabilities, merged over vocabulary tiles."""
    check_fits(hidden, head)
    in_range("k", k, "[0, inf)", integer=True)
    k = min(k, len(head.weight))
    tops = []
    for _, states in row_tiles(hidden):
        total = LogSum(states)
        best = states.new_empty(len(states), 0)
        best_ids = torch.empty(len(states), 0, dtype=torch.long, device=states.device)
        for columns, logits in vocabulary_tiles(states, head):
            new, new_ids = logits.topk(min(k, logits.shape[1]), dim=-1)
            ids = torch.cat([best_ids, new_ids + columns.start], dim=-1)
            best, order = torch.cat([best, new], dim=-1).topk(min(k, ids.shape[1]), dim=-1)
            best_ids = ids.gather(-1, order)
            total.add(logits)
        tops.append((best_ids, best - total.value[:, None]))
    if not tops:
        return TopK(
            torch.empty(0, k, dtype=torch.long, device=hidden.device), hidden.new_empty(0, k)
        )
    return TopK(torch.cat([ids for ids, _ in tops]), torch.cat([best for _, best in tops]))


class _Scores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        softcap: float | None,
        temperature: float,
        entropy: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        head = LinearHead(weight, bias, softcap, temperature)
        dtype = sum_dtype(hidden.dtype)
        logsumexp = hidden.new_empty(len(hidden), dtype=dtype)
        uncertainty = torch.zeros_like(logsumexp)
        chosen = torch.empty_like(logsumexp)
        for rows, states in row_tiles(hidden):
            total = LogSum(states, entropy)
            for _, logits in vocabulary_tiles(states, head):
                total.add(logits)
            logsumexp[rows] = total.value
            if entropy:
                uncertainty[rows] = total.entropy
            own = (states * weight[targets[rows]].to(dtype)).sum(-1)
            own = own if bias is None else own + bias[targets[rows]].to(dtype)
            chosen[rows] = shape_in_place(own, softcap, temperature)
        ctx.save_for_backward(hidden, weight, bias, targets, logsumexp, uncertainty)
        ctx.head = (softcap, temperature)
        if not entropy:
            ctx.mark_non_differentiable(uncertainty)
        return chosen - logsumexp, logsumexp, uncertainty

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple:
        g_logprob, g_logsumexp, g_entropy = gradients
        hidden, weight, bias, targets, logsumexp, uncertainty = ctx.saved_tensors
        head = LinearHead(weight, bias, *ctx.head)
        use_entropy = bool(g_entropy.any())
        slope = g_logsumexp - g_logprob  # the factor of p_v in both
        collect = TileGradients(hidden, head, ctx.needs_input_grad[:3])
        for rows, states in row_tiles(hidden):
            collect.start(rows, states)
            for columns, logits in vocabulary_tiles(states, head):
                bound = collect.cap_slope(logits)
                logp = logits.sub_(logsumexp[rows, None])
                if use_entropy:
                    factor = logp.add(uncertainty[rows, None]).mul_(-g_entropy[rows, None])
                    factor.add_(slope[rows, None])
                    factor.masked_fill_(logp == -torch.inf, 0.0)
                    d_logits = logp.exp_().mul_(factor)
                else:
                    d_logits = logp.exp_().mul_(slope[rows, None])
                at = targets[rows] - columns.start
                inside = ((at >= 0) & (at < logits.shape[1])).nonzero()[:, 0]
                d_logits[inside, at[inside]] += g_logprob[rows][inside]
                collect.add(columns, d_logits, bound)
        return (*collect.results(), None, None, None, None)


class _Support(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        ids: Tensor,
        softcap: float | None,
        temperature: float,
    ) -> tuple[Tensor, Tensor]:
        head = LinearHead(weight, bias, softcap, temperature)
        dtype = sum_dtype(hidden.dtype)
        chosen = hidden.new_empty(ids.shape, dtype=dtype)
        rest = hidden.new_empty(len(hidden), dtype=dtype)
        for rows, states in row_tiles(hidden):
            others = LogSum(states)
            for columns, logits in vocabulary_tiles(states, head):
                row, which, at = _within(ids[rows], columns)
                chosen[rows][row, which] = logits[row, at]
                logits[row, at] = -torch.inf
                others.add(logits)
            rest[rows] = others.value
        total = torch.logaddexp(rest, chosen.logsumexp(-1)) if ids.shape[1] else rest
        ctx.save_for_backward(hidden, weight, bias, ids, total, rest)
        ctx.head = (softcap, temperature)
        return chosen - total[:, None], rest - total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple:
        g_chosen, g_rest = gradients
        hidden, weight, bias, ids, total, rest = ctx.saved_tensors
        head = LinearHead(weight, bias, *ctx.head)
        nothing = rest == -torch.inf  # k = V: the bucket is a constant
        g_rest = g_rest.masked_fill(nothing, 0.0)
        within = torch.where(nothing, 0.0, rest)
        slope = -(g_chosen.sum(-1) + g_rest)  # the factor of p_v in both
        collect = TileGradients(hidden, head, ctx.needs_input_grad[:3])
        for rows, states in row_tiles(hidden):
            collect.start(rows, states)
            for columns, logits in vocabulary_tiles(states, head):
                bound = collect.cap_slope(logits)
                row, which, at = _within(ids[rows], columns)
                # d log p_k = [v = k] - p_v;  d log rest = [v in rest] p_v / rest - p_v
                d_logits = (logits - total[rows, None]).exp_().mul_(slope[rows, None])
                share = logits.sub_(within[rows, None]).exp_().mul_(g_rest[rows, None])
                share[row, at] = 0.0
                d_logits.add_(share)
                d_logits[row, at] += g_chosen[rows][row, which]
                collect.add(columns, d_logits, bound)
        return (*collect.results(), None, None, None)


def _within(ids: Tensor, columns: slice) -> tuple[Tensor, Tensor, Tensor]:
    """The ids [n, k] that lie in a tile: their rows, which of the k they are, their columns."""
    at = ids - columns.start
    row, which = ((at >= 0) & (at < columns.stop - columns.start)).nonzero(as_tuple=True)
    return row, which, at[row, which]
