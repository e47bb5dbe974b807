"""Policies behind a prompt: what a model loses where its cache or its attention leaves tokens out.

Caches: the prompt is read once with full attention; what follows is scored, teacher-forced, under
each policy. Sparse attention: the distributions at the end of a text against those of dense
attention, and rivals that choose as many columns in other ways.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from tokenry.model.attention.hybrid import self_saliency
from tokenry.model.attention.interface import attending_by
from tokenry.model.attention.token_sparse import TokenSparse, select_indices, window_saliency
from tokenry.model.cache.h2o import H2O
from tokenry.model.cache.policy import PolicyCache
from tokenry.model.cache.simulation import Ranking, SimulatedCache
from tokenry.model.cache.tokenselect import TokenSelect

# ---- caches


@contextmanager
def prefilled(model: Any, prompts: Tensor) -> Iterator[Prefill]:
    """Prompts [P, T] that were read once; afterwards the model has its former attention again."""
    with attending_by(model), torch.no_grad():
        shared = SimulatedCache(model)
        first = model(prompts, past_key_values=shared, logits_to_keep=1).logits
        yield Prefill(model, shared, first)


@dataclass(frozen=True)
class Prefill:
    """What has read the prompts, and the logits behind them, [P, 1, V]."""

    model: Any
    shared: SimulatedCache
    first: Tensor

    def under(
        self, text: Tensor, policy: H2O, ranking: Ranking = "attention", seed: int = 0
    ) -> Tensor:
        """Loss of the tokens [P, n] that follow, under a policy that evicts: [P, n] nats."""
        cache = self.shared.under(policy, ranking, seed)
        return self._loss(text, self.model(text[:, :-1], past_key_values=cache).logits)

    def selecting(self, text: Tensor, policy: TokenSelect) -> tuple[Tensor, float]:
        """Loss of the tokens [P, n] that follow, read one at a time under a policy that selects,
        [P, n] nats; and the share of the steps that used an earlier selection."""
        cache: Any = PolicyCache(self.model.config, lambda number: policy.layer())
        for layer, read in zip(cache.layers, self.shared.layers, strict=True):
            layer.update(read.keys, read.values)
            layer.waiting = False  # the prompt's attention was seen by the shared cache
        steps = [
            self.model(text[:, t : t + 1], past_key_values=cache).logits
            for t in range(text.shape[1] - 1)
        ]
        served = sum(layer.hit_rate for layer in cache.layers) / len(cache)
        return self._loss(text, torch.cat(steps, 1)), served

    def _loss(self, text: Tensor, logits: Tensor) -> Tensor:
        logprob = torch.cat([self.first, logits], dim=1).float().log_softmax(-1)
        return -logprob.gather(-1, text[..., None])[..., 0]


# ---- attention


@torch.no_grad()
def tail_logprobs(model: Any, ids: Tensor, count: int) -> Tensor:
    """The last `count` next-token distributions of a text [1, T], [count, V]."""
    return model(ids, use_cache=False, logits_to_keep=count).logits[0].log_softmax(-1)


def mean_kl(logprobs: Tensor, others: Tensor) -> float:
    """KL(p || q), mean over the rows of log p and log q, nats."""
    return float((logprobs.exp() * (logprobs - others)).sum(-1).mean())


@dataclass(frozen=True)
class Remembered(TokenSparse):
    """Token-sparse attention that keeps what each sparse layer chose, in their order."""

    chosen: list[Tensor | None] = field(default_factory=list, compare=False)

    def select(self, query: Tensor, key: Tensor, *rest: Any) -> Tensor | None:
        self.chosen.append(super().select(query, key, *rest))
        return self.chosen[-1]

    def sizes(self, length: int) -> list[int]:
        """Columns that each sparse layer read, of so many."""
        return [length if one is None else one.shape[2] for one in self.chosen]

    def read_again(self, length: int) -> float:
        """Of the (head, column) pairs that the first layer that chose dropped, the share that a
        later one reads."""
        chosen = [one[0] for one in self.chosen if one is not None]
        if len(chosen) < 2:
            return 0.0
        read = [torch.zeros(len(one), length).scatter_(1, one, 1.0).bool() for one in chosen]
        return float(torch.stack(read[1:]).any(0)[~read[0]].float().mean())


@dataclass(frozen=True)
class RandomSets(TokenSparse):
    """Columns drawn for each head at random, as many as `sizes` says for each layer in turn."""

    sizes: list[int] = field(default_factory=list, compare=False)
    generator: Any = field(default=None, compare=False)

    def select(self, query: Tensor, key: Tensor, *rest: Any) -> Tensor | None:
        size = self.sizes.pop(0)
        if size == key.shape[2]:
            return None
        noise = torch.rand(1, query.shape[1], key.shape[2] - self.window, generator=self.generator)
        return select_indices(noise, size - self.window, self.window)


@dataclass(frozen=True)
class Eviction(TokenSparse):
    """The first sparse layer's choice of `size` columns, by the mean over its heads, binds all that
    follow."""

    size: int = 0
    chosen: list[Tensor] = field(default_factory=list, compare=False)

    def select(self, query: Tensor, key: Tensor, *rest: Any) -> Tensor | None:
        if not self.chosen:
            scores = window_saliency(query, key, window=self.window, pool=self.pool)
            shared = scores.mean(1, keepdim=True).expand_as(scores)
            self.chosen.append(select_indices(shared, self.size - self.window, self.window))
        return self.chosen[0]


@torch.no_grad()
def saliency_correlation(model: Any, ids: Tensor, layers: tuple[int, ...], window: int) -> float:
    """Spearman's rank correlation, over the tokens of a head, of self-saliency with the attention
    received per query that can see the token; the mean over heads and layers. ids: [1, T]."""
    correlations: list[Tensor] = []
    sdpa = AttentionInterface()["sdpa"]

    def compared(module: Any, query: Tensor, key: Tensor, *rest: Any, **options: Any) -> Any:
        if module.layer_idx in layers:
            keys = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
            logits = query @ keys.transpose(-1, -2) * query.shape[-1] ** -0.5
            T = logits.shape[-1]
            future = torch.ones(T, T, dtype=torch.bool).triu(1)
            received = logits.masked_fill(future, -torch.inf).softmax(-1).sum(2)
            received = received / torch.arange(T, 0, -1)
            score = self_saliency(query, keys, window=window)
            correlations.append(rank_correlation(score[0], received[0]))
        return sdpa(module, query, key, *rest, **options)

    AttentionInterface.register("saliency_compared", compared)
    AttentionMaskInterface.register("saliency_compared", AttentionMaskInterface()["sdpa"])
    with attending_by(model, "saliency_compared"):
        model(ids, use_cache=False, logits_to_keep=1)
    return float(torch.cat(correlations).mean())


def rank_correlation(left: Tensor, right: Tensor) -> Tensor:
    """Spearman's, of rows [n, T] without equal values: [n]."""
    ranks = [values.argsort(-1).argsort(-1).float() for values in (left, right)]
    a, b = (rank - rank.mean(-1, keepdim=True) for rank in ranks)
    return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))
