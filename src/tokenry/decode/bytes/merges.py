"""Which tokens may stand side by side in an encoding of byte-pair encoding (BPE).

BPE joins, again and again, the adjacent pair of symbols whose merge has the lowest rank, the
leftmost first. Its encoding of a concatenation is that of the parts, side by side, unless a merge
crosses the border. While none has, both parts develop as they do alone: the last symbol of the
left token u runs through u's right spine r_m, ..., r_0 = u (r_i is consumed by the merge that makes
r_{i-1}), the first symbol of the right token v through v's left spine l_n, ..., l_0 = v. So the
pair (u, v) is broken up if and only if for some i, j there is a merge (r_i, l_j) of a rank k with

    k < rank that consumes r_i      and      k <= rank that consumes l_j

(ties go to the left: an equal merge inside u comes before the crossing one, inside v after it).
And a sequence of tokens, each its own encoding, is an encoding if and only if every adjacent pair
is. It holds for tables in which a merge never has a lower rank than those that made its parts, as
trained ones are; the rank above is then the time at which something happens.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tokenry.core.errors import VocabularyError

NEVER = np.iinfo(np.int64).max  # the rank at which a whole token is consumed: it stays
KEPT_MASKS = 256
DISORDERED = 1e-3  # Gemma 3 has three such tokens, three equal signs and more in a row
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


class MergeTable:
    """The merges of a tokenizer's BPE model.

    own: bool [V], whether BPE encodes a token's bytes as that token. `follows(u)`: bool [V],
    whether BPE leaves u and the token after it side by side.

    Raises:
        VocabularyError: tokenizers that are not BPE.
    """

    def __init__(self, tokenizer: Any, size: int):
        model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
        if model.get("type") != "BPE":
            raise VocabularyError(
                f"byte probabilities need a BPE tokenizer, this one is {model.get('type')}"
            )
        if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
            raise VocabularyError("BPE with subword prefixes or suffixes is not supported")
        self.size = size
        self.vocabulary: dict[str, int] = model["vocab"]
        self.byte_fallback = bool(model.get("byte_fallback"))
        self._index(model["merges"])
        self._derive()
        self._masks: OrderedDict[int, Bools] = OrderedDict()

    def follows(self, token: int) -> Bools:
        """bool [V]: v may follow `token` without a merge across the border."""
        known = self._masks.get(token)
        if known is None:
            known = self._masks[token] = self._follows(token)
            if len(self._masks) > KEPT_MASKS:
                self._masks.popitem(last=False)
        else:
            self._masks.move_to_end(token)
        return known

    def _follows(self, token: int) -> Bools:
        allowed = np.ones(self.size, dtype=bool)
        right = self._right
        for entry in range(*right.span(token)):
            symbol, consumed = right.values[entry], right.ranks[entry]
            low, high = np.searchsorted(self._keys, [symbol * self.size, (symbol + 1) * self.size])
            early = np.flatnonzero(self._ranks[low:high] < consumed) + low
            others, ranks = self._keys[early] % self.size, self._ranks[early]
            left = self._left  # symbol -> the tokens that have it on their left spine
            starts, counts = left.starts[others], left.starts[others + 1] - left.starts[others]
            entries = np.repeat(starts - np.cumsum(counts) + counts, counts) + np.arange(
                counts.sum()
            )
            broken = left.ranks[entries] >= np.repeat(ranks, counts)
            allowed[left.values[entries[broken]]] = False
        return allowed

    def _index(self, merges: Sequence[Any]) -> None:
        """Merges sorted by left * V + right, with rank and result."""
        vocabulary, keys, ranks, results = self.vocabulary, [], [], []
        for rank, merge in enumerate(merges):
            left, right = merge.split(" ") if isinstance(merge, str) else merge
            keys.append(vocabulary[left] * self.size + vocabulary[right])
            ranks.append(rank)
            results.append(vocabulary[left + right])
        order = np.argsort(np.array(keys, dtype=np.int64), kind="stable")
        self._keys: Ints = np.array(keys, dtype=np.int64)[order]
        self._ranks: Ints = np.array(ranks, dtype=np.int64)[order]
        self._results: Ints = np.array(results, dtype=np.int64)[order]

    def _look_up(self, left: Ints, right: Ints) -> tuple[Ints, Ints]:
        """Rank and result of the merges of two arrays of symbols; NEVER where there is none."""
        if not len(self._keys):
            return np.full(left.shape, NEVER), np.zeros(left.shape, dtype=np.int64)
        key = left * self.size + right
        index = np.searchsorted(self._keys, key).clip(max=len(self._keys) - 1)
        merges = self._keys[index] == key
        return np.where(merges, self._ranks[index], NEVER), self._results[index]

    def _derive(self) -> None:
        """Encode every token, all of one length at a time, and note the spines on the way."""
        by_length: dict[int, list[list[int]]] = {}
        tokens: dict[int, list[int]] = {}
        for piece, token in self.vocabulary.items():
            symbols = [self.vocabulary.get(character, -1) for character in piece]
            if len(symbols) > 1 and -1 in symbols:
                continue  # a special token, or a byte such as <0x0A>
            by_length.setdefault(len(symbols), []).append(symbols)
            tokens.setdefault(len(symbols), []).append(token)
        self.own: Bools = np.zeros(self.size, dtype=bool)
        disordered, left, right = 0, [], []  # of (token, symbol, rank that consumes it)
        for length, rows in by_length.items():
            symbols = np.array(rows, dtype=np.int64)
            token = np.array(tokens[length], dtype=np.int64)
            ranks, results = self._look_up(symbols[:, :-1], symbols[:, 1:])
            last = np.full(len(token), -1, dtype=np.int64)
            spines: list[list[tuple[Ints, Ints, Ints]]] = [[], []]
            while symbols.shape[1] > 1:
                at = ranks.argmin(1)
                rank = np.take_along_axis(ranks, at[:, None], 1)[:, 0]
                going = rank < NEVER  # the others stop here: they are several tokens
                symbols, ranks, results, token, at, rank, last = (
                    part[going] for part in (symbols, ranks, results, token, at, rank, last)
                )
                disordered += int((rank < last).sum())
                last, width = np.maximum(rank, last), symbols.shape[1]
                ends = ((at == 0, symbols[:, 0]), (at == width - 2, symbols[:, -1]))
                for spine, (taken, symbol) in zip(spines, ends, strict=True):
                    spine.append((token[taken], symbol[taken], last[taken]))
                symbols, ranks, results = self._merge(symbols, ranks, results, at)
            mine = symbols[:, 0] == token
            if symbols.shape[1] == 1 and length == 1:
                mine = np.ones(len(token), dtype=bool)
            whole = token[mine]
            self.own[whole] = True
            for spine, entries in zip(spines, (left, right), strict=True):
                entries += spine
                entries.append((whole, whole, np.full(len(whole), NEVER)))
        if disordered > DISORDERED * self.size:
            raise VocabularyError(
                f"{disordered} merges of this tokenizer come before those that make their parts: "
                "it is not the table of a trained BPE"
            )
        self._left = _Lists.of(left, self.own, self.size, by_symbol=True)
        self._right = _Lists.of(right, self.own, self.size, by_symbol=False)

    def _merge(self, symbols: Ints, ranks: Ints, results: Ints, at: Ints) -> tuple[Ints, ...]:
        """Every row with the pair at `at` joined."""
        row, width = np.arange(len(at)), symbols.shape[1]
        joined = results[row, at]
        keep = np.arange(width - 1) + (np.arange(width - 1) > at[:, None])
        symbols = np.take_along_axis(symbols, keep, 1)
        symbols[row, at] = joined
        if width == 2:
            return symbols, ranks[:, :0], results[:, :0]
        keep = np.arange(width - 2) + (np.arange(width - 2) >= at[:, None])
        ranks, results = (np.take_along_axis(part, keep, 1) for part in (ranks, results))
        for column in (at - 1, at):
            inside = (column >= 0) & (column < width - 2)
            here, there = row[inside], column[inside]
            merges = self._look_up(symbols[here, there], symbols[here, there + 1])
            ranks[here, there], results[here, there] = merges
        return symbols, ranks, results


class _Lists(NamedTuple):
    """Lists of (value, rank), one for each key 0..V-1, in one array."""

    starts: Ints
    values: Ints
    ranks: Ints

    @classmethod
    def of(cls, entries: list, own: Bools, size: int, by_symbol: bool) -> _Lists:
        if entries:
            token, symbol, rank = (np.concatenate(part) for part in zip(*entries, strict=True))
        else:
            token = symbol = rank = np.zeros(0, dtype=np.int64)
        kept = own[token]
        token, symbol, rank = token[kept], symbol[kept], rank[kept]
        key, value = (symbol, token) if by_symbol else (token, symbol)
        order = np.argsort(key, kind="stable")
        starts = np.searchsorted(key[order], np.arange(size + 1))
        return cls(starts, value[order], rank[order])

    def span(self, key: int) -> tuple[int, int]:
        return int(self.starts[key]), int(self.starts[key + 1])
