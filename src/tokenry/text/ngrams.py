"""NGramModel: how often tokens follow each other in a corpus, as smoothed distributions.

With c(h, v) the times that token v follows the n-1 tokens h within a text, c(h) = Σ_v c(h, v), and
a vocabulary of V tokens, the order-n estimate and the interpolation of the orders are

    p_n(v | h) = (c(h, v) + k) / (c(h) + k V)
    p(v | h)   = Σ_n w_n p_n(v | h_n) / Σ_n w_n           n over the orders that match: c(h_n) > 0

Order 1 always matches. What the counts say beyond the constant log(k / (c(h) + k V)) is the *boost*
log((c(h, v) + k) / k), zero for everything unseen: a smaller k makes the same counts louder.

The distinct n-grams are kept as the levels of a trie in sorted arrays, so that a batch of contexts
is looked up by binary search and a distribution is written by one scatter.

    model = NGramModel.fit([tokenizer(text)["input_ids"] for text in corpus], len(tokenizer))
    model.perplexity([tokenizer("How like a winter hath my absence been")["input_ids"]])

Source: additive smoothing and linear interpolation, as used by Limits of n-gram Style Control for
LLMs via Logit-Space Injection (arXiv 2601.16224). k and the weights are reconstructed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tokenry.core.checks import in_range
from tokenry.core.errors import InputError, ShapeError, VocabularyError
from tokenry.core.files import replacing

NOTHING = -1  # in place of a token: no text goes on through it


class Level(NamedTuple):
    """The distinct n-grams of one length, int64 `[M]` each.

    keys: parent · V + token, sorted; the parent is the n-gram's place in the level before without
    its last token, 0 for single tokens. counts: occurrences.
    """

    keys: Tensor
    counts: Tensor


@dataclass(frozen=True)
class NGramModel:
    """Token statistics of a corpus; made by `fit` or `load`.

    vocab_size: V. weights: w_1 ... w_N, positive; their number is the order N. add_k: k > 0.
    """

    vocab_size: int
    weights: tuple[float, ...]
    add_k: float
    levels: tuple[Level, ...]

    @classmethod
    def fit(
        cls,
        texts: Sequence[Sequence[int]],
        vocab_size: int,
        weights: Sequence[float] = (0.2, 0.3, 0.5),
        add_k: float = 1e-3,
    ) -> NGramModel:
        """Count the token ids of `texts`; no n-gram reaches from one text into the next.

        weights, add_k: in (0, inf). Raises InputError where there is no token at all.
        """
        if not weights:
            raise InputError("weights must be positive, one for each order; there are none")
        for weight in weights:
            in_range("each of the weights", weight, "(0, inf)")
        in_range("add_k", add_k, "(0, inf)")
        in_range("vocab_size", vocab_size, "[1, inf)", integer=True)
        ids = torch.tensor([token for text in texts for token in text], dtype=torch.long)
        if not len(ids):
            raise InputError("there is no token in the texts: nothing can be counted")
        if int(ids.min()) < 0 or int(ids.max()) >= vocab_size:
            raise VocabularyError(
                f"the texts have token ids from {int(ids.min())} to {int(ids.max())}, "
                f"the vocabulary {vocab_size} tokens"
            )
        sizes = torch.tensor([len(text) for text in texts])
        left = (sizes.cumsum(0).repeat_interleave(sizes) - torch.arange(len(ids))).long()
        node = torch.zeros_like(ids)  # of the n-gram that starts at each place
        levels = []
        for length in range(1, len(weights) + 1):
            inside = (left >= length).nonzero()[:, 0]
            keys = node[inside] * vocab_size + ids[inside + length - 1]
            distinct, place, counts = keys.unique(return_inverse=True, return_counts=True)
            node[inside] = place
            levels.append(Level(distinct, counts))
        return cls(vocab_size, tuple(weights), add_k, tuple(levels))

    @property
    def order(self) -> int:
        return len(self.weights)

    def logprob_vector(self, context: Sequence[int], order: int) -> Tensor | None:
        """log p_n(. | context), float32 `[V]`, n = `order` in 1..N; None if it does not match."""
        in_range("order", order, f"[1, {self.order}]", integer=True)
        found = self._followers(self._last([context]), order)
        if not bool(found.total[0] > 0):
            return None
        denominator = math.log(float(found.total[0]) + self.add_k * self.vocab_size)
        logprob = torch.full((self.vocab_size,), math.log(self.add_k) - denominator)
        logprob[found.tokens] = (found.counts + self.add_k).log().float() - denominator
        return logprob

    def boost(self, contexts: Tensor, renormalise: bool = False) -> Tensor:
        """Σ_n w_n log p_n(v | h_n) over the matching orders, less its value at unseen tokens.

        contexts: `[B, T]` ids, of which the last N-1 count; nothing goes on through a negative id.
        Returns float32 `[B, V]`. renormalise: divide by the sum of the matching weights.
        """
        if contexts.ndim != 2:
            raise ShapeError(f"contexts must be [B, T], got {list(contexts.shape)}")
        contexts = contexts[:, max(contexts.shape[1] - self.order + 1, 0) :]
        boosts = torch.zeros(len(contexts), self.vocab_size, device=contexts.device)
        matching = torch.zeros(len(contexts), device=contexts.device)
        for order, weight in enumerate(self.weights, start=1):
            found = self._followers(contexts, order)
            value = weight * torch.log1p(found.counts / self.add_k)
            boosts[found.rows, found.tokens] += value.float()
            matching += weight * (found.total > 0)
        return boosts / matching[:, None] if renormalise else boosts

    def logprob(self, ids: Sequence[int] | Tensor) -> Tensor:
        """log p(v_t | v_<t) of every token of a text, interpolated, float32 `[T]`."""
        ids = self._text(ids)
        if not len(ids):
            return torch.zeros(0, device=ids.device)
        before = ids.new_full((self.order - 1,), NOTHING)
        windows = torch.cat([before, ids]).unfold(0, self.order, 1)  # [T, N]
        mixed = torch.zeros(len(ids), dtype=torch.float64, device=ids.device)
        matching = torch.zeros_like(mixed)
        for order, weight in enumerate(self.weights, start=1):
            context = self._node(windows[:, self.order - order : -1])
            total = self._total(context, order)
            count = self._count(context, windows[:, -1], order)
            p = (count + self.add_k) / (total + self.add_k * self.vocab_size)
            mixed += torch.where(total > 0, weight * p, 0.0)
            matching += weight * (total > 0)
        return (mixed / matching).log().float()

    def perplexity(self, texts: Sequence[Sequence[int] | Tensor]) -> float:
        """exp(-mean log p) over all tokens of the texts. Raises InputError where there are none."""
        found = torch.cat([torch.zeros(0, device=self.device), *map(self.logprob, texts)])
        if not len(found):
            raise InputError("there is no token in the texts: they have no perplexity")
        return math.exp(-float(found.double().mean()))

    def followers(self, context: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The tokens that follow `context`, of fewer than N tokens, and how often: `[M]` each, of
        length 0 where it does not occur. Raises InputError for a longer context."""
        in_range("the context's length", len(context), f"[0, {self.order - 1}]", integer=True)
        node = self._node(self._last([context]))
        start, end = (int(place) for place in self._span(node, len(context) + 1))
        level = self.levels[len(context)]
        return level.keys[start:end] % self.vocab_size, level.counts[start:end]

    def knows(self, ids: Sequence[int] | Tensor) -> Tensor:
        """bool `[T]`: whether each token occurs in the corpus."""
        ids = self._text(ids)
        return self._count(torch.zeros_like(ids), ids, 1) > 0

    def to(self, device: torch.device | str) -> NGramModel:
        """The same model with its counts on another device."""
        moved = (Level(level.keys.to(device), level.counts.to(device)) for level in self.levels)
        return replace(self, levels=tuple(moved))

    @property
    def device(self) -> torch.device:
        return self.levels[0].keys.device

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all."""
        settings = {"vocab_size": self.vocab_size, "weights": self.weights, "add_k": self.add_k}
        arrays = {}
        for length, level in enumerate(self.levels, start=1):
            arrays[f"keys.{length}"] = level.keys.cpu().contiguous()
            arrays[f"counts.{length}"] = level.counts.cpu().contiguous()
        with replacing(Path(path)) as temporary:
            save_file(arrays, temporary, metadata={"ngrams": json.dumps(settings)})

    @classmethod
    def load(cls, path: str | Path) -> NGramModel:
        """Read what `save` wrote. Raises InputError for a file that is none of these."""
        try:
            with safe_open(path, framework="pt") as file:
                settings = json.loads(file.metadata()["ngrams"])
                levels = tuple(
                    Level(file.get_tensor(f"keys.{n}"), file.get_tensor(f"counts.{n}"))
                    for n in range(1, len(settings["weights"]) + 1)
                )
            size, weights, add_k = (settings[key] for key in ("vocab_size", "weights", "add_k"))
        except FileNotFoundError:
            raise InputError(f"there is no file {path}") from None
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} is not a file of NGramModel.save: {error}") from error
        return cls(size, tuple(weights), add_k, levels)

    def _text(self, ids: Sequence[int] | Tensor) -> Tensor:
        ids = torch.as_tensor(ids, dtype=torch.long, device=self.device)
        if ids.ndim != 1:
            raise ShapeError(f"a text is a list of ids, got {list(ids.shape)}")
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < self.vocab_size:
            raise VocabularyError(
                f"the text has token ids from {int(ids.min())} to {int(ids.max())}, the n-grams "
                f"are of {self.vocab_size} tokens"
            )
        return ids

    # ---- looking up

    def _last(self, contexts: Sequence[Sequence[int]]) -> Tensor:
        return torch.tensor([list(context) for context in contexts], device=self.device).long()

    def _node(self, tokens: Tensor) -> Tensor:
        """Places `[B]` of the n-grams `tokens` `[B, n]` in their level; -1 if never seen."""
        node = torch.zeros(len(tokens), dtype=torch.long, device=tokens.device)
        for level, token in zip(self.levels, tokens.unbind(1), strict=False):
            key = torch.where(
                (node >= 0) & (token >= 0) & (token < self.vocab_size),
                node * self.vocab_size + token,
                -1,
            )
            place = torch.searchsorted(level.keys, key).clamp_max(len(level.keys) - 1)
            known = level.keys[place] == key if len(level.keys) else torch.zeros_like(key).bool()
            node = torch.where(known, place, -1)
        return node

    def _span(self, context: Tensor, order: int) -> tuple[Tensor, Tensor]:
        """First and last + 1 of the n-grams of `order` that go on from the contexts `[B]`."""
        keys = self.levels[order - 1].keys
        start = torch.searchsorted(keys, context.clamp_min(0) * self.vocab_size)
        end = torch.searchsorted(keys, (context.clamp_min(0) + 1) * self.vocab_size)
        return start, torch.where(context >= 0, end, start)

    def _total(self, context: Tensor, order: int) -> Tensor:
        """c(h) `[B]`."""
        counts = self.levels[order - 1].counts
        cumulative = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        start, end = self._span(context, order)
        return cumulative[end] - cumulative[start]

    def _count(self, context: Tensor, token: Tensor, order: int) -> Tensor:
        """c(h, v) `[B]`."""
        level = self.levels[order - 1]
        if not len(level.keys):
            return torch.zeros_like(token)
        key = torch.where(context >= 0, context * self.vocab_size + token, -1)
        place = torch.searchsorted(level.keys, key).clamp_max(len(level.keys) - 1)
        return torch.where(level.keys[place] == key, level.counts[place], 0)

    def _followers(self, contexts: Tensor, order: int) -> Followers:
        width = contexts.shape[1]
        if width < order - 1:
            empty = contexts.new_zeros(0)
            return Followers(empty, empty, empty, contexts.new_zeros(len(contexts)))
        context = self._node(contexts[:, width - order + 1 :])
        start, end = self._span(context, order)
        many = end - start
        rows = torch.arange(len(contexts), device=contexts.device).repeat_interleave(many)
        first = (start - (many.cumsum(0) - many)).repeat_interleave(many)
        entries = first + torch.arange(len(rows), device=contexts.device)
        level = self.levels[order - 1]
        return Followers(
            rows,
            level.keys[entries] % self.vocab_size,
            level.counts[entries],
            self._total(context, order),
        )


class Followers(NamedTuple):
    """All tokens that follow a batch of contexts: row, token and count `[M]`; c(h) `[B]`."""

    rows: Tensor
    tokens: Tensor
    counts: Tensor
    total: Tensor
