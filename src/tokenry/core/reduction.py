"""Token reduction: fewer tokens in the place of many, whatever decided which.

A reduction turns tokens X [N, d] into X' = A X [M, d], M <= N. What A looks like tells the families
apart, and each has a way back:

    Selection   rows of A are one-hot           kept tokens return to their places
    Merging     rows are means over disjoint    every member gets its group's vector
                groups, weighted by size
    Pooling     rows are any weights of sum 1   every token gets the mean of the rows it went into

All tensors may have leading batch dimensions "...". After merging, attention counts a token of size
s as s tokens:

    softmax(q k / sqrt(d) + log s) v

Source: the families are those of "Token Reduction Should Go Beyond Efficiency in Generative Models:
From Vision, Language to Multimodality" (arXiv 2505.18227), written as matrices by us; matching and
proportional attention are those of "Token Merging: Your ViT But Faster" (arXiv 2210.09461), except
that merged tokens keep the order of their first members.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tokenry.core.errors import InputError, ShapeError


class Reduction(Protocol):
    """What every reduction can do. length: N, the tokens there were; sizes: [..., M], how many of
    them each reduced token stands for."""

    @property
    def length(self) -> int: ...

    @property
    def sizes(self) -> Tensor: ...

    def apply(self, x: Tensor) -> Tensor:
        """[..., N, d] -> [..., M, d]"""
        ...

    def expand(self, y: Tensor) -> Tensor:
        """[..., M, d] -> [..., N, d]"""
        ...

    def matrix(self) -> Tensor:
        """A, [..., M, N]"""
        ...

    def positions(self) -> Tensor:
        """[..., M] long, rising: the place in the original that each reduced token has."""
        ...


@dataclass(frozen=True, eq=False)
class Selection:
    """Keeps the tokens at index [..., M], distinct and rising, of `length` tokens."""

    index: Tensor
    length: int

    def __post_init__(self) -> None:
        index = self.index
        if index.shape[-1] < 1:
            raise InputError("a selection must keep at least one token")
        if int(index.min()) < 0 or int(index.max()) >= self.length:
            raise ShapeError(f"kept positions must be in 0..{self.length - 1}")
        if not bool((index.diff(dim=-1) > 0).all()):
            raise ShapeError("kept positions must be distinct and rising")

    @property
    def sizes(self) -> Tensor:
        return torch.ones_like(self.index)

    def apply(self, x: Tensor) -> Tensor:
        check_length(x, self.length)
        index = self.index[..., None].expand(*x.shape[:-2], -1, x.shape[-1])
        return x.gather(-2, index)

    def expand(self, y: Tensor, base: Tensor | None = None) -> Tensor:
        """Kept tokens in their places; the others are those of `base` [..., N, d], or zero."""
        check_length(y, self.index.shape[-1])
        if base is None:
            base = y.new_zeros(*y.shape[:-2], self.length, y.shape[-1])
        index = self.index[..., None].expand(*y.shape[:-2], -1, y.shape[-1])
        return base.scatter(-2, index, y)

    def matrix(self) -> Tensor:
        return torch.nn.functional.one_hot(self.index, self.length).float()

    def positions(self) -> Tensor:
        return self.index


@dataclass(frozen=True, eq=False)
class Merging:
    """Puts token i into group groups[..., i] of 0..M-1; every row of a batch has the same M.

    weights: [..., N], the sizes that the tokens already have from an earlier merging (default 1):
    a group is the mean over all that its members stand for.
    """

    groups: Tensor
    weights: Tensor | None = None

    def __post_init__(self) -> None:
        if self.weights is not None and self.weights.shape != self.groups.shape:
            raise ShapeError(
                f"weights {list(self.weights.shape)} must have the shape of groups "
                f"{list(self.groups.shape)}"
            )
        if not bool((self.counts() > 0).all()):
            raise ShapeError("every group of 0..M-1 must have a member")

    @property
    def length(self) -> int:
        return self.groups.shape[-1]

    @property
    def reduced(self) -> int:
        return int(self.groups.max()) + 1

    @property
    def sizes(self) -> Tensor:
        own = torch.ones_like(self.groups, dtype=torch.float32)
        return self.sums((own if self.weights is None else self.weights)[..., None])[..., 0]

    def counts(self) -> Tensor:
        """Members per group, [..., M]."""
        return self.sums(torch.ones_like(self.groups)[..., None])[..., 0]

    def sums(self, x: Tensor) -> Tensor:
        check_length(x, self.length)
        index = self.groups[..., None].expand(x.shape)
        zeros = x.new_zeros(*x.shape[:-2], self.reduced, x.shape[-1])
        return zeros.scatter_add(-2, index, x)

    def apply(self, x: Tensor) -> Tensor:
        weights = 1.0 if self.weights is None else self.weights[..., None]
        return (self.sums(x.float() * weights) / self.sizes[..., None]).to(x.dtype)

    def expand(self, y: Tensor) -> Tensor:
        check_length(y, self.reduced)
        return y.gather(-2, self.groups[..., None].expand(*y.shape[:-2], -1, y.shape[-1]))

    def matrix(self) -> Tensor:
        member = torch.nn.functional.one_hot(self.groups, self.reduced).transpose(-1, -2).float()
        weights = 1.0 if self.weights is None else self.weights[..., None, :]
        return member * weights / self.sizes[..., None]

    def positions(self) -> Tensor:
        """The first member of every group."""
        places = torch.arange(self.length, device=self.groups.device).expand_as(self.groups)
        last = torch.full_like(self.groups[..., : self.reduced], self.length)
        return last.scatter_reduce(-1, self.groups, places, "amin")


@dataclass(frozen=True, eq=False)
class Pooling:
    """Mixes tokens by weights [..., M, N], not negative, each row of sum 1."""

    weights: Tensor

    def __post_init__(self) -> None:
        rows = self.weights.sum(-1)
        if bool((self.weights < 0).any()) or not torch.allclose(
            rows, torch.ones_like(rows), atol=1e-4
        ):
            raise ShapeError("pooling weights must not be negative, and each row must sum to 1")

    @property
    def length(self) -> int:
        return self.weights.shape[-1]

    @property
    def shares(self) -> Tensor:
        """Columns of sum 1: how each token's weight is divided over the rows, [..., M, N]."""
        return self.weights / self.weights.sum(-2, keepdim=True).clamp_min(1e-12)

    @property
    def sizes(self) -> Tensor:
        return self.shares.sum(-1)

    def apply(self, x: Tensor) -> Tensor:
        check_length(x, self.length)
        return (self.weights @ x.float()).to(x.dtype)

    def expand(self, y: Tensor) -> Tensor:
        check_length(y, self.weights.shape[-2])
        return (self.shares.transpose(-1, -2) @ y.float()).to(y.dtype)

    def matrix(self) -> Tensor:
        return self.weights

    def positions(self) -> Tensor:
        """The centre of mass of every row, rounded, in rising order."""
        places = torch.arange(self.length, device=self.weights.device, dtype=torch.float32)
        return (self.weights.float() @ places).round().long().sort(-1).values


def select_top(scores: Tensor, budget: int, protect: Sequence[int] = ()) -> Selection:
    """The `budget` tokens with the largest scores [..., N] and among them always those at
    `protect`; of equal scores the earlier."""
    length = scores.shape[-1]
    if not max(1, len(set(protect))) <= budget <= length:
        raise InputError(
            f"a budget of {budget} tokens is not between {max(1, len(set(protect)))} (protected "
            f"ones count) and {length}"
        )
    scores = scores.float().clone()
    scores[..., list(protect)] = torch.inf
    order = scores.argsort(dim=-1, descending=True, stable=True)
    return Selection(order[..., :budget].sort(-1).values, length)


def bipartite_soft_matching(
    metric: Tensor,
    merges: int,
    *,
    sizes: Tensor | None = None,
    protect: Sequence[int] = (),
) -> Merging:
    """Merge `merges` pairs of similar tokens in one step; N - merges remain.

    metric: [..., N, d], what cosine similarity is taken of, such as attention keys. Tokens at even
    places look for the most similar token at an odd place; the `merges` most similar pairs are
    joined (several may join the same token). protect: places whose tokens neither join nor are
    joined. sizes: [..., N], from an earlier merging.
    """
    length = metric.shape[-2]
    if bad := [place for place in protect if not 0 <= place < length]:
        raise InputError(f"protected places {bad} are not in 0..{length - 1}")
    joining = len(range(0, length, 2)) - len({p for p in protect if p % 2 == 0})
    joined = length // 2 - len({p for p in protect if p % 2 == 1})
    most = min(length // 2, joining) if joined > 0 else 0
    if not 0 <= merges <= most:
        raise InputError(
            f"{merges} merges are not between 0 and {most}: one step can merge half of {length} "
            f"tokens, less the {len(set(protect))} protected ones"
        )
    places = torch.arange(length, device=metric.device)
    target = places.expand(metric.shape[:-1]).clone()  # [..., N]: the token each one joins
    if merges:
        unit = torch.nn.functional.normalize(metric.float(), dim=-1)
        similarity = unit[..., ::2, :] @ unit[..., 1::2, :].transpose(-1, -2)  # [..., even, odd]
        even = [place // 2 for place in protect if place % 2 == 0]
        odd = [place // 2 for place in protect if place % 2 == 1]
        similarity[..., odd] = -torch.inf
        best, partner = similarity.max(-1)
        best[..., even] = -torch.inf
        chosen = best.argsort(dim=-1, descending=True, stable=True)[..., :merges]
        target.scatter_(-1, 2 * chosen, 2 * partner.gather(-1, chosen) + 1)
    return merging_into(target, sizes)


def merging_into(target: Tensor, sizes: Tensor | None = None) -> Merging:
    """Tokens with one target [..., N] are a group; groups are in the order of their first members.

    target: the place of the token that each one joins, its own if it joins none. sizes: [..., N],
    from an earlier merging. Every row of a batch must have as many groups.
    """
    places = torch.arange(target.shape[-1], device=target.device).expand_as(target)
    first = places.clone().scatter_reduce(-1, target, places, "amin")
    leader = first.gather(-1, target)  # [..., N]: the first member of the token's group
    group = (leader == places).long().cumsum(-1) - 1
    return Merging(group.gather(-1, leader), sizes)


def merge_to(metric: Tensor, budget: int, *, protect: Sequence[int] = ()) -> Merging:
    """Steps of matching, each at most a half, until `budget` tokens remain; `metric` is merged
    along. Protected places count from the start."""
    length = metric.shape[-2]
    if not 1 <= budget <= length:
        raise InputError(f"a budget of {budget} tokens is not between 1 and {length}")
    whole = Merging(torch.arange(length, device=metric.device).expand(metric.shape[:-1]))
    kept = list(protect)
    while whole.reduced > budget:
        now = whole.reduced
        free_even = len(range(0, now, 2)) - len({p for p in kept if p % 2 == 0})
        free_odd = now // 2 - len({p for p in kept if p % 2 == 1})
        most = min(now // 2, free_even) if free_odd > 0 else 0
        if not most:
            raise InputError(f"{len(kept)} protected tokens leave nothing to merge at {now} tokens")
        step = bipartite_soft_matching(
            whole.apply(metric), min(most, now - budget), sizes=whole.sizes, protect=kept
        )
        if kept and metric.ndim > 2:
            raise ShapeError("protected places of a batch would move apart: merge rows one by one")
        kept = [int(step.groups[place]) for place in kept]
        whole = Merging(step.groups.gather(-1, whole.groups))
    return whole


def attention_pooling(queries: Tensor, keys: Tensor) -> Pooling:
    """softmax(queries keys^T / sqrt(d)): [..., M, d] queries over [..., N, d] keys."""
    logits = queries.float() @ keys.float().transpose(-1, -2) / keys.shape[-1] ** 0.5
    return Pooling(logits.softmax(-1))


def proportional_attention(query: Tensor, key: Tensor, value: Tensor, sizes: Tensor) -> Tensor:
    """Attention that counts a token of size s as s tokens: query [..., q, d], key and value
    [..., M, d], sizes [..., M]. Output [..., q, d]."""
    logits = query.float() @ key.float().transpose(-1, -2) / query.shape[-1] ** 0.5
    logits = logits + sizes.float().log()[..., None, :]
    return (logits.softmax(-1) @ value.float()).to(value.dtype)


def check_length(x: Tensor, length: int) -> None:
    if x.ndim < 2 or x.shape[-2] != length:
        raise ShapeError(f"expected [..., {length}, d], got {list(x.shape)}")
