"""H2O, the heavy-hitter oracle: a key-value cache that keeps recent tokens and much-attended ones.

Per layer and key head, with P the attention probabilities over the keys still kept:

    A(j) += sum over the step's queries, and the query heads of the group, of P[query, j]
    keep    the last R tokens, and the K others with the largest A; evict the rest for ever

The prompt attends densely and evicts once; then each new token evicts at most one. A key keeps the
rotary position it was written with, and the softmax runs over the keys kept. Sums are not divided
by the number of queries that saw a key, so early tokens are favoured: that is part of the method.
Two options are no part of it: `average` divides them, A(j) / #{queries that saw j}, and
`prompt_only` evicts once, after the prompt, and keeps all that comes later. Both together, with
R = 0, are the ObservedAttention press of kvpress.

Source: "H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models"
(arXiv 2306.14048), algorithm 1. Ours: the sum over a group of query heads (the paper's models have
one key head per query head), budgets per row of a batch, and left padding, which never counts.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenry.core.errors import InputError
from tokenry.model.attention.dense import attend_in_chunks
from tokenry.model.attention.masks import BlockOfQueries
from tokenry.model.attention.observed_layer import ObservedLayer
from tokenry.model.cache.policy import (
    Example,
    PolicyCache,
    cache_policy,
    cache_under,
    check_budget,
    check_size,
    tokens,
)


def keep_heavy_and_recent(score: Tensor, kept: Tensor, heavy: Tensor, recent: Tensor) -> Tensor:
    """Which keys survive: bool [B, H, S].

    Equal scores keep the earlier token.

    Args:
        score: [B, H, S], of keys in the order of their tokens.
        kept: bool [B, H, S], which of them are keys.
        heavy: [B], how many are kept for their score.
        recent: [B], how many are kept as the latest.
    """
    heavy, recent = heavy[:, None, None], recent[:, None, None]
    later = kept.flip(-1).cumsum(-1).flip(-1) - kept.long()  # keys kept after this one
    newest = kept & (later < recent)
    candidate = kept & ~newest
    order = score.masked_fill(~candidate, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(
        -1, order, torch.arange(order.shape[-1], device=order.device).expand_as(order)
    )
    return newest | (candidate & (rank < heavy))


@cache_policy("h2o", paper=81, examples=lambda: _examples())
@dataclass(frozen=True)
class H2O:
    """A bounded cache: `model.generate(**inputs, past_key_values=H2O().cache(model))`.

    Only full-attention layers are bounded: sliding ones, as in Gemma 3, keep their window, a bound
    already.

    Args:
        heavy: K, the heavy hitters kept.
        recent: R, the latest tokens kept. An int counts tokens; a float is a share of the prompt
            (the first forward; each row's own, without padding), rounded down but at least one
            token unless it is 0. The paper's default is a tenth each; heavy=0 is a sliding window,
            recent=0 heavy hitters alone; InputError if both are 0.
        average: rank by the mean instead of the sum of the attention received.
        prompt_only: what comes after the first forward is kept.
    """

    heavy: int | float = 0.1
    recent: int | float = 0.1
    average: bool = False
    prompt_only: bool = False

    def __post_init__(self) -> None:
        check_budget(heavy=self.heavy, recent=self.recent)
        if self.heavy == 0 and self.recent == 0:
            raise InputError("heavy=0 and recent=0 leave an empty cache; give one of them a budget")

    @classmethod
    def of_size(cls, size: int | float) -> "H2O":
        """`size` keys kept (int), or that share of the prompt (float), half of them heavy."""
        check_size(size)
        if isinstance(size, float):
            return cls(heavy=size / 2, recent=size / 2)
        return cls(heavy=size // 2, recent=size - size // 2)

    def cache(self, model: Any) -> PolicyCache:
        return cache_under(self, model)

    def layer(self) -> "H2OLayer":
        return H2OLayer(self)

    def budget(self, length: Tensor) -> tuple[Tensor, Tensor]:
        """K and R in tokens for prompts of `length` [B]."""
        return tokens(self.heavy, length), tokens(self.recent, length)

    def worth(self, received: Tensor, queries: Tensor) -> Tensor:
        """What keys are ranked by: the attention received from so many queries, [B, H, S] each."""
        return received / queries.clamp_min(1) if self.average else received


class H2OLayer(ObservedLayer):
    """One layer's keys and values, and of each key kept its score A, the queries that saw it, and
    its position in the text."""

    rows = ("keys", "values", "score", "queries", "kept", "position", "heavy", "recent")

    def __init__(self, policy: H2O):
        super().__init__()
        self.policy = policy
        self._forget()

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, new_tokens: BlockOfQueries, **options: Any
    ) -> Tensor:
        B, heads, _, _ = key.shape
        q = query.shape[2]
        past = self.kept if self.kept is not None else key.new_zeros(B, heads, 0, dtype=torch.bool)
        real = []  # per chunk: whether each new token is one, bool [B, rows]

        def visible(start: int, stop: int) -> Tensor:
            new = new_tokens(start, stop).expand(B, heads, -1, -1)
            return torch.cat([past.unsqueeze(2).expand(-1, -1, stop - start, -1), new], dim=-1)

        def counted(start: int, stop: int) -> Tensor:
            # padding does not even see itself
            itself = new_tokens(start, stop)[:, 0].diagonal(start, dim1=-2, dim2=-1).expand(B, -1)
            real.append(itself)
            return itself

        output, received = attend_in_chunks(query, key, value, visible, counted=counted, **options)
        self.observe(received, torch.cat(real, dim=-1)[:, -q:])
        return output

    @torch.no_grad()
    def observe(self, received: Tensor, real: Tensor) -> None:
        """Add the attention `received` [B, H, S] to the scores and evict down to the budget.

        Args:
            real: bool [B, q], which of the last q keys are tokens and not padding.
        """
        B, heads, _ = received.shape
        q = real.shape[-1]
        real = real[:, None].expand(B, heads, q)
        position = torch.arange(self.seen - q, self.seen, dtype=torch.int32, device=received.device)
        position = position.expand(B, heads, q)
        queries = real.flip(-1).cumsum(-1, dtype=torch.int32).flip(-1)
        if self.score is None:
            self.heavy, self.recent = self.policy.budget(real[:, 0].sum(-1))
            self.capacity = int((self.heavy + self.recent).max())
            self.score, self.queries, self.kept, self.position = received, queries, real, position
        else:
            self.score = received + torch.nn.functional.pad(self.score, (0, q))
            self.queries = torch.cat([self.queries + queries[..., :1], queries], dim=-1)
            self.kept = torch.cat([self.kept, real], dim=-1)
            self.position = torch.cat([self.position, position], dim=-1)
            if self.policy.prompt_only:
                self.recent = self.recent + real[:, 0].sum(-1)
                self.capacity = int((self.heavy + self.recent).max())
        worth = self.policy.worth(self.score, self.queries)
        self.kept = keep_heavy_and_recent(worth, self.kept, self.heavy, self.recent)
        if self.kept.shape[-1] > self.capacity:
            # rows with a smaller budget than the largest fill up with slots that are not kept
            slot = self.kept.logical_not().to(torch.uint8).argsort(dim=-1, stable=True)
            self._take(slot[..., : self.capacity])

    def _take(self, slot: Tensor) -> None:
        wide = slot.unsqueeze(-1)  # [B, H, C, 1]
        keys, values = self.keys, self.values
        assert keys is not None
        assert values is not None
        self.keys = keys.gather(2, wide.expand(-1, -1, -1, keys.shape[-1]))
        self.values = values.gather(2, wide.expand(-1, -1, -1, values.shape[-1]))
        self.score, self.queries, self.kept, self.position = (
            state.gather(2, slot) for state in (self.score, self.queries, self.kept, self.position)
        )

    def _forget(self) -> None:
        self.score: Any = None
        self.queries: Any = None
        self.kept: Any = None
        self.position: Any = None
        self.heavy: Any = None
        self.recent: Any = None
        self.capacity = 0

    def reset(self) -> None:
        super().reset()
        self._forget()


def _examples() -> list[Example]:
    return [Example(H2O(100, 100), H2O(3, 3), H2O(0.2, 0.25), 6)]
