"""Linear + softmax without the logits: per-token numbers from hidden states, tile by tile.

A language model's head turns hidden states h [N, D] into logits z = h W^T [N, V], by far the
largest tensor of a training step: 1 GB for a thousand tokens and Gemma's vocabulary. Everything
that is wanted of it is a few numbers per token, so the logits are made one tile [n, v] at a time
(a few MB, which stay in the processor's cache), folded into running sums, and made again in the
backward pass:

    logsumexp  L = log sum_v exp z_v                       dL/dz_v  = p_v
    logprob    l = z_y - L                                 dl/dz_v  = [v = y] - p_v
    entropy    H = L - sum_v p_v z_v                       dH/dz_v  = -p_v (log p_v + H)
    divergence F = sum_v q_v f(p_v / q_v)                  dF/dz_v  = s_v - q_v sum_u s_u,
               with q the softmax of z, p another model's, and s_v = dF/d log q_v
    rest       R = log sum_{v not in K} p_v                dR/dz_v  = [v not in K] p_v / e^R - p_v

Sums run in float32 (float64 for float64 inputs) whatever the dtype of the inputs. Gradients reach
the hidden states, the matrix and the bias.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tokenry.core.checks import in_range, within
from tokenry.core.divergence import FORWARD_KL, Comparison, FDivergence
from tokenry.core.errors import ShapeError, VocabularyError

TILE_TOKENS = 1024
TILE_VOCABULARY = 1024
LOWEST = -1e4  # exp of it is 0 in every dtype, and products with it stay finite


@dataclass(frozen=True)
class LinearHead:
    """The output layer: logits = softcap * tanh((h W^T + bias) / softcap) / temperature.

    weight: [V, D]. bias: [V] or None. softcap: Gemma 2's bound on logits, finite and > 0, or None
    for no bound. temperature: divides the logits, finite and > 0; 1 is the model's own
    distribution.
    """

    weight: Tensor
    bias: Tensor | None = None
    softcap: float | None = None
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.weight.ndim != 2:
            raise ShapeError(f"the head's weight must be [V, D], got {list(self.weight.shape)}")
        if self.bias is not None and self.bias.shape != self.weight.shape[:1]:
            raise ShapeError(
                f"the head's bias must be [{len(self.weight)}], got {list(self.bias.shape)}"
            )
        within(self, "(0, inf)", "temperature")
        within(self, "(0, inf)", "softcap", optional=True)

    def shaped(self, raw: Tensor) -> Tensor:
        """Logits from h W^T + bias: bounded and tempered. Differentiable."""
        if self.softcap is not None:
            raw = self.softcap * torch.tanh(raw / self.softcap)
        return raw if self.temperature == 1.0 else raw / self.temperature

    def logits(self, hidden: Tensor) -> Tensor:
        """All logits, [..., V] in float32: for small inputs."""
        weight = self.weight.detach()
        bias = None if self.bias is None else self.bias.detach()
        rows = hidden.detach().reshape(-1, hidden.shape[-1])
        dtype = _sum_dtype(hidden.dtype)
        full = _logits(rows.to(dtype), weight.to(dtype), bias, self.softcap, self.temperature)
        return full.view(*hidden.shape[:-1], -1)


class FusedScores(NamedTuple):
    """Per-token numbers, each [N]; those that were not asked for are None."""

    logprob: Tensor
    logsumexp: Tensor
    entropy: Tensor | None


class TopK(NamedTuple):
    """The k likeliest tokens, likeliest first. ids: [N, k]; logprob: [N, k]."""

    ids: Tensor
    logprob: Tensor


def fused_scores(
    hidden: Tensor, head: LinearHead, targets: Tensor, *, entropy: bool = False
) -> FusedScores:
    """Log-probability of each target, log-partition and (optionally) entropy, in nats.

    hidden: [N, D]. targets: [N] ids. Differentiable in hidden, head.weight and head.bias.
    Raises ShapeError when shapes differ and VocabularyError for an id outside the vocabulary.
    """
    _check(hidden, head)
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


class Support(NamedTuple):
    """A distribution on some tokens and one bucket for all others. logprob: [N, k]; rest: [N], log
    of the others' mass, -inf where there are none."""

    logprob: Tensor
    rest: Tensor


def fused_support(hidden: Tensor, head: LinearHead, ids: Tensor) -> Support:
    """Log-probabilities of k different tokens of each row, and of all the others together.

    hidden: [N, D]. ids: [N, k]. Differentiable in hidden, head.weight and head.bias; log of the
    rest is summed over the other tokens, not subtracted from 1, so that it is exact when small.
    Raises ShapeError and VocabularyError as `fused_scores` does.
    """
    _check(hidden, head)
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


def fused_divergence(
    hidden: Tensor,
    head: LinearHead,
    other_hidden: Tensor,
    other_head: LinearHead,
    divergence: FDivergence | Comparison = FORWARD_KL,
) -> Tensor:
    """D_f(p || q) per token, [N]: q from `hidden`, `head`; p from the other (reference, teacher).

    divergence: which, or a `Comparison` with a temperature for both sides and, for a bound from
    below at a fraction of the work in the backward pass, the k likeliest tokens of p.
    Differentiable in the first pair only: the other side is a constant. To differentiate in p, swap
    the sides and take the mirrored divergence (KL(q || p) is REVERSE_KL).
    """
    how = divergence if isinstance(divergence, Comparison) else Comparison(divergence)
    if how.temperature != 1.0:
        head, other_head = (
            replace(one, temperature=one.temperature * how.temperature)
            for one in (head, other_head)
        )
    _check(hidden, head)
    _check(other_hidden, other_head)
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


@torch.no_grad()
def fused_top_k(hidden: Tensor, head: LinearHead, k: int) -> TopK:
    """The k >= 1 likeliest tokens and their log-probabilities, merged over vocabulary tiles."""
    _check(hidden, head)
    in_range("k", k, "[0, inf)", integer=True)
    k = min(k, len(head.weight))
    found = []
    for _, states in _row_tiles(hidden):
        total = _LogSum(states)
        best = states.new_empty(len(states), 0)
        best_ids = torch.empty(len(states), 0, dtype=torch.long, device=states.device)
        for columns, logits in _vocabulary_tiles(states, head):
            new, new_ids = logits.topk(min(k, logits.shape[1]), dim=-1)
            ids = torch.cat([best_ids, new_ids + columns.start], dim=-1)
            best, order = torch.cat([best, new], dim=-1).topk(min(k, ids.shape[1]), dim=-1)
            best_ids = ids.gather(-1, order)
            total.add(logits)
        found.append((best_ids, best - total.value[:, None]))
    if not found:
        return TopK(
            torch.empty(0, k, dtype=torch.long, device=hidden.device), hidden.new_empty(0, k)
        )
    return TopK(torch.cat([ids for ids, _ in found]), torch.cat([best for _, best in found]))


class _LogSum:
    """A running log-sum-exp of a block of rows, and optionally their softmax's entropy.

    Kept relative to the largest logit so far, `top`: sum = Σ exp(z - top) and, for the entropy,
    weighted = Σ exp(z - top) (z - top), which stays accurate when logits are large.
    """

    def __init__(self, states: Tensor, entropy: bool = False):
        self.top = states.new_full((len(states),), -torch.inf)
        self.sum = states.new_zeros(len(states))
        self.weighted = states.new_zeros(len(states)) if entropy else None

    def add(self, logits: Tensor) -> None:
        """Fold a tile [n, v] in; the tile is overwritten."""
        top = torch.maximum(self.top, logits.amax(-1))
        finite = top.masked_fill(top == -torch.inf, 0.0)  # a row may be all masked up to here
        step = (self.top - finite).clamp_min_(LOWEST)
        shrink = step.exp()
        shifted = logits.sub_(finite[:, None])
        if self.weighted is None:
            self.sum.mul_(shrink).add_(shifted.exp_().sum(-1))
        else:
            exp = shifted.exp()
            # exp is 0 where a logit is -inf, and 0 * -inf must count as 0.
            product = shifted.clamp_min_(LOWEST).mul_(exp).sum(-1)
            self.weighted.add_(step.mul_(self.sum)).mul_(shrink).add_(product)
            self.sum.mul_(shrink).add_(exp.sum(-1))
        self.top = top

    @property
    def value(self) -> Tensor:
        return self.top + self.sum.log()

    @property
    def entropy(self) -> Tensor:
        assert self.weighted is not None
        return self.sum.log() - self.weighted / self.sum


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
        dtype = _sum_dtype(hidden.dtype)
        logsumexp = hidden.new_empty(len(hidden), dtype=dtype)
        uncertainty = torch.zeros_like(logsumexp)
        chosen = torch.empty_like(logsumexp)
        for rows, states in _row_tiles(hidden):
            total = _LogSum(states, entropy)
            for _, logits in _vocabulary_tiles(states, head):
                total.add(logits)
            logsumexp[rows] = total.value
            if entropy:
                uncertainty[rows] = total.entropy
            own = (states * weight[targets[rows]].to(dtype)).sum(-1)
            own = own if bias is None else own + bias[targets[rows]].to(dtype)
            chosen[rows] = _shape(own, softcap, temperature)
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
        collect = _Gradients(hidden, head, ctx.needs_input_grad[:3])
        for rows, states in _row_tiles(hidden):
            collect.start(rows, states)
            for columns, logits in _vocabulary_tiles(states, head):
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
        dtype = _sum_dtype(hidden.dtype)
        chosen = hidden.new_empty(ids.shape, dtype=dtype)
        rest = hidden.new_empty(len(hidden), dtype=dtype)
        for rows, states in _row_tiles(hidden):
            others = _LogSum(states)
            for columns, logits in _vocabulary_tiles(states, head):
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
        collect = _Gradients(hidden, head, ctx.needs_input_grad[:3])
        for rows, states in _row_tiles(hidden):
            collect.start(rows, states)
            for columns, logits in _vocabulary_tiles(states, head):
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
        dtype = _sum_dtype(hidden.dtype)
        value = hidden.new_zeros(len(hidden), dtype=dtype)
        slope = torch.zeros_like(value)
        normalisers = torch.empty(2, len(hidden), dtype=dtype, device=hidden.device)
        for rows, states in _row_tiles(hidden):
            others = other_hidden[rows].to(dtype)
            for side, (inner, outer) in enumerate(((states, head), (others, other_head))):
                total = _LogSum(inner)
                for _, logits in _vocabulary_tiles(inner, outer):
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
        collect = _Gradients(hidden, head, ctx.needs_input_grad[:3])
        for rows, states in _row_tiles(hidden):
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


class _Gradients:
    """Accumulates d loss / d (hidden, weight, bias) from tiles of d loss / d logits."""

    def __init__(self, hidden: Tensor, head: LinearHead, wanted: tuple[bool, ...]):
        self.head, self.dtype = head, _sum_dtype(hidden.dtype)
        weight, bias = head.weight, head.bias

        def zeros(like: Tensor) -> Tensor:
            return torch.zeros_like(like, dtype=self.dtype)

        self.hidden = zeros(hidden) if wanted[0] else None
        self.weight = zeros(weight) if wanted[1] else None
        self.bias = zeros(bias) if bias is not None and wanted[2] else None
        self.inputs = (hidden, weight, bias)

    def start(self, rows: slice, states: Tensor) -> None:
        self.rows, self.states = rows, states

    def cap_slope(self, logits: Tensor) -> Tensor | None:
        """d logits / d raw logits, up to the temperature, for a head with a soft cap."""
        if self.head.softcap is None:
            return None
        bounded = logits * (self.head.temperature / self.head.softcap)
        return bounded.square_().neg_().add_(1.0)

    def add(self, columns: slice, d_logits: Tensor, cap_slope: Tensor | None) -> None:
        if cap_slope is not None:
            d_logits = d_logits.mul_(cap_slope)
        if self.head.temperature != 1.0:
            d_logits = d_logits.div_(self.head.temperature)
        if self.hidden is not None:
            self.hidden[self.rows].addmm_(d_logits, self.head.weight[columns].to(self.dtype))
        if self.weight is not None:
            self.weight[columns].addmm_(d_logits.T, self.states)
        if self.bias is not None:
            self.bias[columns] += d_logits.sum(0)

    def results(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        sums = (self.hidden, self.weight, self.bias)
        hidden, weight, bias = (
            None if total is None or source is None else total.to(source.dtype)
            for total, source in zip(sums, self.inputs, strict=True)
        )
        return hidden, weight, bias


def _row_tiles(hidden: Tensor) -> Iterator[tuple[slice, Tensor]]:
    dtype = _sum_dtype(hidden.dtype)
    for start in range(0, len(hidden), TILE_TOKENS):
        rows = slice(start, min(start + TILE_TOKENS, len(hidden)))
        yield rows, hidden[rows].detach().to(dtype)


def _vocabulary_tiles(states: Tensor, head: LinearHead) -> Iterator[tuple[slice, Tensor]]:
    """Tiles of logits; each may be overwritten, the next one reuses its memory."""
    size = len(head.weight)
    buffer = states.new_empty(len(states) * min(TILE_VOCABULARY, size))
    for start in range(0, size, TILE_VOCABULARY):
        columns = slice(start, min(start + TILE_VOCABULARY, size))
        weight = head.weight[columns].detach().to(states.dtype)
        bias = None if head.bias is None else head.bias[columns].detach()
        out = buffer[: len(states) * len(weight)].view(len(states), len(weight))
        yield columns, _logits(states, weight, bias, head.softcap, head.temperature, out)


def _within(ids: Tensor, columns: slice) -> tuple[Tensor, Tensor, Tensor]:
    """The ids [n, k] that lie in a tile: their rows, which of the k they are, their columns."""
    at = ids - columns.start
    row, which = ((at >= 0) & (at < columns.stop - columns.start)).nonzero(as_tuple=True)
    return row, which, at[row, which]


def _paired_tiles(
    rows: slice,
    states: Tensor,
    head: LinearHead,
    others: Tensor,
    other_head: LinearHead,
    normalisers: Tensor,
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """(columns, log q, log p): tiles of both models' log-probabilities, [n, v] each."""
    sides = zip(_vocabulary_tiles(states, head), _vocabulary_tiles(others, other_head), strict=True)
    for (columns, logits), (_, other_logits) in sides:
        yield (
            columns,
            logits.sub_(normalisers[0, rows, None]),
            other_logits.sub_(normalisers[1, rows, None]),
        )


def _logits(
    states: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    softcap: float | None = None,
    temperature: float = 1.0,
    out: Tensor | None = None,
) -> Tensor:
    logits = torch.mm(states, weight.T) if out is None else torch.mm(states, weight.T, out=out)
    if bias is not None:
        logits.add_(bias.to(logits.dtype))
    return _shape(logits, softcap, temperature)


def _shape(logits: Tensor, softcap: float | None, temperature: float) -> Tensor:
    """Bound and temper raw logits, in place."""
    if softcap is not None:
        logits.div_(softcap).tanh_().mul_(softcap)
    if temperature != 1.0:
        logits.div_(temperature)
    return logits


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _check(hidden: Tensor, head: LinearHead) -> None:
    if hidden.ndim != 2 or hidden.shape[1] != head.weight.shape[1]:
        raise ShapeError(
            f"hidden must be [N, {head.weight.shape[1]}] to fit the head's weight "
            f"{list(head.weight.shape)}, got {list(hidden.shape)}"
        )
