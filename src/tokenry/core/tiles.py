"""Logits made one tile [tokens, vocabulary] at a time, sums over them, and gradients from them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tokenry.core.linear_head import LinearHead, sum_dtype, tile_logits

TILE_TOKENS = 1024
TILE_VOCABULARY = 1024
LOWEST = -1e4  # exp of it is 0 in every dtype, and products with it stay finite


def row_tiles(hidden: Tensor) -> Iterator[tuple[slice, Tensor]]:
    dtype = sum_dtype(hidden.dtype)
    for start in range(0, len(hidden), TILE_TOKENS):
        rows = slice(start, min(start + TILE_TOKENS, len(hidden)))
        yield rows, hidden[rows].detach().to(dtype)


def vocabulary_tiles(states: Tensor, head: LinearHead) -> Iterator[tuple[slice, Tensor]]:
    """Tiles of logits; each may be overwritten, the next one reuses its memory."""
    size = len(head.weight)
    buffer = states.new_empty(len(states) * min(TILE_VOCABULARY, size))
    for start in range(0, size, TILE_VOCABULARY):
        columns = slice(start, min(start + TILE_VOCABULARY, size))
        weight = head.weight[columns].detach().to(states.dtype)
        bias = None if head.bias is None else head.bias[columns].detach()
        out = buffer[: len(states) * len(weight)].view(len(states), len(weight))
        yield columns, tile_logits(states, weight, bias, head.softcap, head.temperature, out)


class LogSum:
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


class TileGradients:
    """Accumulates d loss / d (hidden, weight, bias) from tiles of d loss / d logits."""

    def __init__(self, hidden: Tensor, head: LinearHead, wanted: tuple[bool, ...]):
        self.head, self.dtype = head, sum_dtype(hidden.dtype)
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
