"""A selection of cached tokens: how it is voted for, when it is used again, where its keys lie."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, embedding_bag, max_pool1d

from tokenry.model.attention.masks import StepMask

BLOCK = 512  # keys scored at a time


def soft_votes(query: Tensor, key: Tensor, middle: Tensor | None = None, pool: int = 0) -> Tensor:
    """Σ_h softmax_m(q_h · k_{g(h), m}): float32 [B, M] for queries [B, H, D], keys [B, Hkv, M, D].

    A row sums to H without pooling.

    Args:
        middle: bool [B, M], the keys that may be voted for; None: all.
        pool: an odd window, over which each key takes the largest vote; 0 for none.
    """
    return votes_of(scores(query, key), middle, pool)


def vote(query: Tensor, keys: Tensor, begin: int, end: int) -> tuple[Tensor, Tensor]:
    """The `scores` of all keys, and the votes [B, end - begin] for the columns begin..end, over
    which each head's softmax runs."""
    if (compiled := compiled_for(keys)) is not None:
        return compiled.vote(query, keys, begin, end)
    score = scores(query, keys)
    return score, votes_of(score[..., begin:end])


def best(votes: Tensor, k: int) -> Tensor:
    """The columns [B, k] of the k largest of votes [B, n] >= 0, in the order of the text; of equal
    ones the first, as pooling makes many."""
    if not k:
        return torch.empty(len(votes), 0, dtype=torch.long, device=votes.device)
    if (compiled := compiled_for(votes)) is not None:
        return compiled.best(votes, k)
    least = votes.topk(k).values[:, -1:]
    above, equal = votes > least, votes == least
    equal &= equal.cumsum(-1) <= k - above.sum(-1, keepdim=True)
    return (above | equal).nonzero()[:, 1].view(len(votes), k)


def compiled_for(states: Tensor) -> Any:
    """The module with these two in machine code, where it can read `states`; None elsewhere."""
    if states.device.type != "cpu" or states.dtype not in (torch.float32, torch.bfloat16):
        return None
    return _compiled() if states.is_contiguous() else None


@cache
def _compiled() -> Any:
    try:
        from tokenry.model.kernels import selection as compiled
    except ImportError:  # numba is not installed: `pip install "tokenry[fast]"`
        return None
    return compiled


def scores(query: Tensor, key: Tensor) -> Tensor:
    """q_h · k_{g(h), m}, float32 [B, Hkv, G, M] for queries [B, H, D] and keys [B, Hkv, M, D].

    Reading the keys is the cost of a selection. Where M is a multiple of BLOCK they are multiplied
    a block at a time: the blocks fit a processor's own cache, and all processors get some.
    """
    heads, M = key.shape[1:3]
    grouped = query.float().unflatten(1, (heads, -1))  # [B, Hkv, G, D]
    if M % BLOCK or not key.is_contiguous():
        return grouped @ key.float().mT
    blocks = grouped.unsqueeze(2) @ key.float().unflatten(2, (-1, BLOCK)).mT
    return blocks.transpose(2, 3).flatten(3)


def votes_of(score: Tensor, middle: Tensor | None = None, pool: int = 0) -> Tensor:
    """Every head's softmax of its scores [B, Hkv, G, M], summed over the heads: [B, M]."""
    if middle is not None:
        score = score.masked_fill(~middle[:, None, None], torch.finfo(score.dtype).min)
    votes = score.softmax(-1).sum((1, 2))
    if middle is not None:
        votes = votes * middle  # a row without any is uniform before, and zero after
    return pooled(votes, pool)


def pooled(votes: Tensor, pool: int) -> Tensor:
    """Each of [B, M] the largest in an odd window around it; as they are where the window is 0."""
    if pool <= 1:
        return votes
    return max_pool1d(votes[:, None], pool, stride=1, padding=pool // 2)[:, 0]


def mean_query(query: Tensor, real: Tensor | None) -> Tensor:
    """float32 [B, H, D]: the mean of [B, H, q, D] over the queries that are `real` [B or 1, q]."""
    if query.shape[2] == 1:
        return query.float().squeeze(2)
    if real is None:
        return query.float().mean(2)
    weight = real.float()[:, None, :, None]
    return (query.float() * weight).sum(2) / weight.sum(2).clamp_min(1)


def weighted_sum(weight: Tensor, column: Tensor, states: Tensor) -> Tensor:
    """Σ_s weight_s · states[column_s]: [B, Hkv, G, D] for weights [B, Hkv, G, S], columns [B, S],
    and contiguous states [B, Hkv, N, D], of which only these columns are read."""
    B, heads, group, S = weight.shape
    bags = flat_index(column, states).unsqueeze(2).expand(-1, -1, group, -1)
    weight = weight.to(states.dtype).reshape(-1, S)
    sums = embedding_bag(
        bags.reshape(-1, S), states.flatten(0, 2), mode="sum", per_sample_weights=weight
    )
    return sums.view(B, heads, group, -1)


def flat_index(column: Tensor, states: Tensor) -> Tensor:
    """Columns [B, S] of states [B, Hkv, N, D] as rows of `states.flatten(0, 2)`: [B, Hkv, S]."""
    B, heads, N, _ = states.shape
    row = torch.arange(B * heads, device=column.device).view(B, heads, 1) * N
    return row + column[:, None]


@dataclass
class Selection:
    """The columns that each row of a batch last selected, and the queries it selected them for.

    Args:
        threshold: the least cosine of a new query with the old one at which the columns serve
            again.
        query: [B, H * D], the old ones.
        column: [B, S], what they selected.
        real: bool [B, S], columns that count, None: all.
        ready: bool [B], rows that had more than enough to choose from: others select anew each
            time.
        end: no selected column lies at or behind it.
    """

    threshold: float
    query: Tensor | None = None
    column: Tensor | None = None
    real: Tensor | None = None
    ready: Tensor | None = None
    end: int = -1
    queries: int = 0
    hits: int = 0

    def serves(self, query: Tensor) -> Tensor:
        """bool [B]: the rows whose columns can be used again for the queries `query` [B, H * D]."""
        self.queries += len(query)
        if self.query is None or self.ready is None or self.threshold > 1:
            return torch.zeros(len(query), dtype=torch.bool, device=query.device)
        cosine = cosine_similarity(query, self.query, dim=-1).clamp(-1.0, 1.0)
        hit = self.ready & (cosine >= self.threshold)
        self.hits += int(hit.sum())
        return hit

    def store(
        self,
        rows: Tensor,
        query: Tensor,
        column: Tensor,
        real: Tensor | None,
        ready: Tensor,
        end: int,
    ) -> None:
        """Replace the columns of the `rows` (bool [B]; all of them the first time)."""
        if not bool(rows.all()):
            assert self.query is not None
            assert self.column is not None
            assert self.ready is not None
            if real is not None or self.real is not None:
                all_real = torch.ones_like(column, dtype=torch.bool)
                new = all_real if real is None else real
                real = torch.where(rows[:, None], new, all_real if self.real is None else self.real)
            query = torch.where(rows[:, None], query, self.query)
            column = torch.where(rows[:, None], column, self.column)
            ready = torch.where(rows, ready, self.ready)
        self.query, self.column, self.real, self.ready = query, column, real, ready
        self.end = end

    def forget(self) -> None:
        self.query = self.column = self.real = self.ready = None
        self.end = -1

    def copy(self) -> "Selection":
        return replace(self)

    def each_row(self, change: Callable[[Tensor], Tensor]) -> None:
        for name in ("query", "column", "real", "ready"):
            state = getattr(self, name)
            setattr(self, name, None if state is None else change(state))


class SideBySide:
    """The keys and values of a selection, followed by the latest `local` ones before the column
    `end`: [B, Hkv, S + local, D] each, contiguous, so that attention reads them in one sweep.

    Of the latest ones, column c has slot c mod local: a new token takes the place of the one that
    leaves the window. (Attention does not mind the order: keys carry their positions.)

    Args:
        spare: the states of a selection that is no longer used, to be overwritten where they fit;
            new memory for every selection would cost more time than the copy.
    """

    def __init__(
        self,
        column: Tensor,
        buffers: list[Tensor],
        local: int,
        end: int,
        spare: list[Tensor] | None = None,
    ):
        self.selected, self.local, self.end = column.shape[1], local, end
        self.slots = torch.arange(local, device=column.device)
        column = torch.cat([column, self.latest().expand(len(column), -1)], dim=-1)
        index = flat_index(column, buffers[0])
        flat, shape = index.flatten(), (*index.shape, buffers[0].shape[3])
        if spare is None or spare[0].shape != shape or spare[0].dtype != buffers[0].dtype:
            spare = [buffer.new_empty(shape) for buffer in buffers]
        self.states = spare
        for state, buffer in zip(spare, buffers, strict=True):
            torch.index_select(buffer.flatten(0, 2), 0, flat, out=state.flatten(0, 2))

    def latest(self) -> Tensor:
        """Each slot's column [local], those of [end - local, end)."""
        return self.end - 1 - (self.end - 1 - self.slots) % self.local

    def advance(self, buffers: list[Tensor], end: int) -> None:
        """Bring the slots to the columns [end - local, end)."""
        begin = end - 1 if end - 1 == self.end else end - self.local
        while begin < end and end != self.end:  # twice at most: to the last slot, from the first
            slot = begin % self.local
            count = min(end - begin, self.local - slot)
            at = self.selected + slot
            for state, buffer in zip(self.states, buffers, strict=True):
                state[:, :, at : at + count] = buffer[:, :, begin : begin + count]
            begin += count
        self.end = end

    def followed_by(self, buffers: list[Tensor], begin: int, end: int) -> list[Tensor]:
        """The selected keys and values, and after them the columns [begin, end)."""
        return [
            torch.cat([state[:, :, : self.selected], buffer[:, :, begin:end]], dim=2)
            for state, buffer in zip(self.states, buffers, strict=True)
        ]


@dataclass
class Piece(StepMask):
    """The mask of queries start..stop of a step, to which the step's earlier tokens are past.

    Attributes:
        offset: the number of tokens before the step.
    """

    mask: StepMask
    start: int
    stop: int
    offset: int

    def __post_init__(self) -> None:
        self.queries = self.stop - self.start

    @cached_property
    def causal(self) -> bool:
        return self.mask.causal

    def __call__(self, start: int, stop: int) -> Tensor:
        rows = self.mask(self.start + start, self.start + stop)
        return rows[..., self.start : self.stop]

    def past(self, start: int, stop: int) -> Tensor | None:
        before = self.mask.past(self.start + start, self.start + stop)
        if before is None and self.mask.causal:
            return None
        rows = self.mask(self.start + start, self.start + stop)[:, 0, :, : self.start]
        if before is None:
            before = rows.new_ones(1, 1, self.offset)
        return torch.cat([before.expand(len(rows), rows.shape[1], -1), rows], dim=-1)
