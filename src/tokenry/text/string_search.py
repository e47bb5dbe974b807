"""String search: many byte strings found at once, in a text or in every token of a vocabulary.

The Aho-Corasick automaton. Its states are the prefixes of the strings, numbered from 0, the empty
one; after reading a text it stands at the longest prefix that the text ends with:

    table[s, b] = state of the longest suffix of (prefix s, byte b) that is a prefix of a string
    string p is found where the text is read up to its end, in states of which p is a suffix

Bytes, not characters: tokens may be cut inside a character, and whatever the tokens, the bytes that
they spell are read the same way.

    search = StringSearch([b"he", b"she", b"his"])
    list(search.find(b"ushers"))                 # [(1, 4, 1), (2, 4, 0)]: she, he
    trie = TokenTrie(token_bytes(tokenizer))     # the vocabulary, arranged once
    states, seen = trie.walk(search.table, 0, search.marks)   # one numpy step for each byte

Source: Efficient string matching: an aid to bibliographic search (Aho and Corasick, 1975).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from tokenry.core.errors import InputError
from tokenry.text.vocabulary import token_bytes

WORD = 64  # strings for each machine word of `marks`


class StringSearch:
    """The automaton of some strings. It never changes; where a reader stands is an integer.

    strings: not empty each; equal ones are found together. table: int32 [S, 256]. ends: for each
    state, the numbers of the strings found there, longest first. marks: the same as bits, uint64
    [S, W], string p in bit p % 64 of word p // 64. hits: bool [S], whether a string is found there.
    depth: int32 [S], length of the prefix that the state stands for.
    """

    def __init__(self, strings: Sequence[bytes]):
        self.strings = tuple(bytes(string) for string in strings)
        if b"" in self.strings:
            raise InputError(
                f"string {self.strings.index(b'')} is empty and occurs everywhere: leave it out"
            )
        self.table, self.ends, self.depth = automaton(self.strings)
        self.marks = np.zeros((len(self.ends), -(-len(self.strings) // WORD) or 1), np.uint64)
        for state, found in enumerate(self.ends):
            for string in found:
                self.marks[state, string // WORD] |= np.uint64(1 << string % WORD)
        self.hits = self.marks.any(1)

    def step(self, state: int, byte: int) -> int:
        """The state after one more byte."""
        return int(self.table[state, byte])

    def read(self, data: bytes, state: int = 0) -> tuple[int, frozenset[int]]:
        """The state after `data`, and the strings that were found on the way."""
        found: set[int] = set()
        for byte in data:
            state = int(self.table[state, byte])
            found.update(self.ends[state])
        return state, frozenset(found)

    def find(self, text: bytes) -> Iterator[tuple[int, int, int]]:
        """(start, end, string) of every occurrence, also overlapping ones, by where they end."""
        state = 0
        for place, byte in enumerate(text, start=1):
            state = int(self.table[state, byte])
            for string in self.ends[state]:
                yield place - len(self.strings[string]), place, string


class TokenTrie:
    """The prefixes of all tokens, shorter ones first: an automaton reads the whole vocabulary in
    one step for each byte of the longest token.

    pieces: the bytes of every token; b"" (special tokens) reads nothing. Of a tokenizer, `of`
    makes it once.
    """

    def __init__(self, pieces: Sequence[bytes]):
        self.pieces = tuple(pieces)
        sizes = np.array([len(piece) for piece in self.pieces], np.int64)
        width = int(sizes.max(initial=0))
        place = np.zeros(len(self.pieces), np.int64)  # node of each token, of its prefix on the way
        joined = np.frombuffer(b"".join(self.pieces), np.uint8)
        starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]) if len(sizes) else sizes
        parents, bytes_, self.levels = [np.zeros(1, np.int64)], [np.zeros(1, np.uint8)], [1]
        for size in range(width):
            longer = np.flatnonzero(sizes > size)
            pairs = place[longer] << 8 | joined[starts[longer] + size]
            unique, node = np.unique(pairs, return_inverse=True)
            place[longer] = self.levels[-1] + node
            parents.append(unique >> 8)
            bytes_.append((unique & 0xFF).astype(np.uint8))
            self.levels.append(self.levels[-1] + len(unique))
        self.parent, self.byte = np.concatenate(parents), np.concatenate(bytes_)
        self.place = place

    @classmethod
    def of(cls, tokenizer: Any) -> TokenTrie:
        """The trie of a tokenizer's vocabulary, or of a list of bytes."""
        if isinstance(tokenizer, Sequence):
            return cls(tokenizer)
        known = _TRIES.get(tokenizer)
        if known is None or len(known.pieces) != len(tokenizer):
            known = _TRIES[tokenizer] = cls(token_bytes(tokenizer))
        return known

    def __len__(self) -> int:
        return len(self.pieces)

    def walk(
        self, table: np.ndarray, state: int, marks: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Where every token leads from `state`: (states [V], marks met on the way).

        table: [S, 256], any byte automaton. marks: [S, ...], integers or bool, of which those of
        all states that a token passes, its last one included, are joined by "or" (default: none;
        zeros [V]). The state from which it starts does not count.
        """
        states = np.empty(len(self.parent), table.dtype)
        states[0] = state
        for begin, end in zip(self.levels, self.levels[1:], strict=False):
            states[begin:end] = table[states[self.parent[begin:end]], self.byte[begin:end]]
        if marks is None:
            return states[self.place], np.zeros(len(self.place), bool)
        seen = marks[states]
        seen[0] = 0
        for begin, end in zip(self.levels, self.levels[1:], strict=False):
            seen[begin:end] |= seen[self.parent[begin:end]]
        return states[self.place], seen[self.place]


_TRIES: WeakKeyDictionary[Any, TokenTrie] = WeakKeyDictionary()


def automaton(
    strings: Sequence[bytes],
) -> tuple[np.ndarray, list[tuple[int, ...]], np.ndarray]:
    """The transition table [S, 256], the strings that end in each state, and the states' depths."""
    children: list[dict[int, int]] = [{}]
    depth = [0]
    own: list[list[int]] = [[]]
    for number, string in enumerate(strings):
        node = 0
        for byte in string:
            if byte not in children[node]:
                children[node][byte] = len(children)
                children.append({})
                depth.append(depth[node] + 1)
                own.append([])
            node = children[node][byte]
        own[node].append(number)
    table = np.zeros((len(children), 256), np.int32)
    suffix = [0] * len(children)  # the longest proper suffix that is a prefix of a string
    ends = [tuple(found) for found in own]
    waiting = [0]
    for node in waiting:  # breadth first: suffixes are shorter, so they are done
        if node:
            ends[node] += ends[suffix[node]]
            table[node] = table[suffix[node]]
        for byte, child in children[node].items():
            suffix[child] = int(table[node, byte]) if node else 0
            table[node, byte] = child
            waiting.append(child)
    return table, ends, np.array(depth, np.int32)
