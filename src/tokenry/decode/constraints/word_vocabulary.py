"""Word vocabularies: the tokens of a tokenizer arranged by how they continue, end and begin words.

A word constraint asks about all tokens at once. What it needs is the same for every filter, so it
is computed once for a tokenizer: the symbols of each token, those before the first separator apart
from those after it, and a trie of each kind, along which a word machine walks level by level.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from tokenry.decode.constraints import sentence_spans
from tokenry.decode.constraints.spelling import (
    APOSTROPHE,
    SEPARATOR,
    Spelling,
    is_mark,
    split_tail,
)
from tokenry.decode.constraints.word_machine import WordMachine
from tokenry.text.vocabulary import token_bytes


class WordVocabulary:
    """The tokens of a vocabulary by their symbols; made once for a tokenizer.

    Attributes:
        growing: tokens without a separator.
        closing: tokens with one. A token's head are the symbols before its first separator, its
            rest those after it.
        tailed: tokens that end inside a character.
        inside: tokens that begin inside one.
        quoted: tokens that begin with an apostrophe or a combining mark, which may or may not
            continue a word.
    """

    def __init__(self, pieces: Sequence[bytes], spelling: Spelling):
        self.pieces = list(pieces)
        self.inside = [t for t, piece in enumerate(pieces) if piece and 0x80 <= piece[0] < 0xC0]
        growing, closing, self.tailed, self.quoted = [], [], [], []
        kinds: dict[str, int] = {"": 0}
        self._kind_of = np.zeros(len(pieces), np.int64)
        for token, piece in enumerate(pieces):
            split = split_tail(piece) if piece else None
            if split is None:
                continue
            kind = sentence_spans.classes(split[0])
            self._kind_of[token] = kinds.setdefault(kind, len(kinds))
            symbols = re.sub(f"{SEPARATOR}+", SEPARATOR, spelling.symbols(split[0]))
            head, separator, rest = symbols.partition(SEPARATOR)
            if separator:
                closing.append((token, head, rest))
            else:
                growing.append((token, head))
            if split[1]:
                self.tailed.append(token)
            if symbols and (symbols[0] == APOSTROPHE or is_mark(symbols[0])):
                self.quoted.append(token)
        self._kinds = list(kinds)
        self._spans: dict[int, np.ndarray] = {}
        heads = [head for _, head, *_ in [*growing, *closing]]
        self.heads, self.rests = SymbolTrie(heads), SymbolTrie([rest for *_, rest in closing])
        self.growing = np.array([token for token, *_ in growing], np.int64)
        self.closing = np.array([token for token, *_ in closing], np.int64)
        index_of = self.heads.index_of
        self.growing_head = np.array([index_of[head] for _, head in growing], np.int64)
        self.closing_head = np.array([index_of[head] for _, head, _ in closing], np.int64)
        self.closing_rest = np.array([self.rests.index_of[rest] for *_, rest in closing], np.int64)

    def within_spans(self, span: int) -> np.ndarray:
        """Which tokens [V] may come where a sentence's span is in this state."""
        if span not in self._spans:
            after = [sentence_spans.read(span, kind) != sentence_spans.DEAD for kind in self._kinds]
            self._spans[span] = np.array(after, bool)[self._kind_of]
        return self._spans[span]

    def piece(self, token: int) -> bytes:
        """The bytes of a token; none for ids that the tokenizer does not have."""
        return self.pieces[token] if 0 <= token < len(self.pieces) else b""


class SymbolTrie:
    """The prefixes of many strings, shorter ones first; `place` gives the position of each."""

    def __init__(self, strings: Iterable[str]):
        prefixes = {string[:size] for string in {*strings} for size in range(len(string) + 1)}
        ordered = sorted(prefixes | {""}, key=lambda prefix: (len(prefix), prefix))
        self.index_of = {prefix: index for index, prefix in enumerate(ordered)}
        self.symbols = "".join(prefix[-1] for prefix in ordered[1:])
        self.parent = np.array([self.index_of[prefix[:-1]] for prefix in ordered], np.int64)
        sizes = np.array([len(prefix) for prefix in ordered])
        self.levels = np.searchsorted(sizes, np.arange(1, sizes[-1] + 2)).tolist()

    def walk(self, machine: WordMachine, columns: np.ndarray, state: int) -> np.ndarray:
        """The machine's states after every prefix, read from `state`.

        Args:
            columns: of `symbols`.
        """
        states = np.full(len(self.parent), state, np.int32)
        for begin, end in zip(self.levels, self.levels[1:], strict=False):
            before = states[self.parent[begin:end]]
            states[begin:end] = machine.move(before, columns[begin - 1 : end - 1])
        return states


_VOCABULARIES: WeakKeyDictionary[Any, dict[Spelling, WordVocabulary]] = WeakKeyDictionary()


def vocabulary_of(tokenizer: Any, spelling: Spelling) -> WordVocabulary:
    """The vocabulary of a tokenizer, made once for each, or of a list of bytes."""
    if isinstance(tokenizer, Sequence):
        return WordVocabulary(tokenizer, spelling)
    known = _VOCABULARIES.setdefault(tokenizer, {})
    if spelling not in known:
        known[spelling] = WordVocabulary(token_bytes(tokenizer), spelling)
    return known[spelling]
