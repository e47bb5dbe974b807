"""Word machines: automata that read the symbols of a text and die at the first word that fails.

A machine's states are integers. Four are common to all:

    DEAD          no continuation makes the text good
    START         between words
    LOST          in a prompt's word that can no longer be completed: it may end, not grow
    LOST_PENDING  the same, after an apostrophe

Every other state stands for a word begun that an accepted word starts with. After an apostrophe the
word is pending: a letter makes the apostrophe part of it, anything else ends the word before it.

`LexiconMachine` knows the accepted words as a list: a trie, as one table, stepping many states at
once. `OpenMachine` knows no list: it asks an exact filter, and merges prefixes whose residuals are
equal and letters that the filter does not tell apart.
"""

from collections.abc import Iterable
from typing import Protocol

import numpy as np

from tokenry.decode.constraints.spelling import APOSTROPHE, SEPARATOR, is_mark
from tokenry.decode.steering.word_filters import WordFilter

DEAD, START, LOST, LOST_PENDING = range(4)
FIRST_FREE = 4


class WordMachine(Protocol):
    """What both machines do."""

    def step(self, state: int, symbol: str) -> int:
        """The state after one symbol."""
        ...

    def columns(self, symbols: str) -> np.ndarray:
        """Symbols as the integers that `move` reads."""
        ...

    def move(self, states: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """The states [N] after one symbol each [N]."""
        ...

    def pending(self, state: int) -> bool:
        """Whether the last symbol is an apostrophe that may join a word."""
        ...

    def alphabet(self) -> frozenset[str] | None:
        """The letters of accepted words; None if there is no list."""
        ...


class LexiconMachine:
    """The trie of a list of words. Memory: 4 bytes x inner nodes x letters of the alphabet."""

    def __init__(self, words: Iterable[str]):
        ordered = sorted({*words})
        letters = sorted({*"".join(ordered)} - {APOSTROPHE})
        # Columns: a letter and a mark of no word, the separator, the apostrophe, the letters.
        self.column = {SEPARATOR: 2, APOSTROPHE: 3}
        self.column.update({letter: 4 + rank for rank, letter in enumerate(letters)})
        marks = [1, *(self.column[letter] for letter in letters if is_mark(letter))]
        child, accepts = trie(ordered, self.column)
        self.table, self.first_pending = closed(child, accepts, marks)

    def step(self, state: int, symbol: str) -> int:
        return int(self.table[state, self._column(symbol)])

    def columns(self, symbols: str) -> np.ndarray:
        return np.array([self._column(symbol) for symbol in symbols], np.int64)

    def move(self, states: np.ndarray, columns: np.ndarray) -> np.ndarray:
        return self.table[states, columns]

    def pending(self, state: int) -> bool:
        return state in (LOST_PENDING, FIRST_FREE + 1) or state >= self.first_pending

    def alphabet(self) -> frozenset[str] | None:
        return frozenset(self.column)

    def _column(self, symbol: str) -> int:
        known = self.column.get(symbol)
        return known if known is not None else int(is_mark(symbol))


class OpenMachine:
    """Any string of letters is a word; `filter`, which must be exact, decides."""

    def __init__(self, filter: WordFilter):
        self.filter = filter
        self.letters = filter.letters()
        self.other = next(c for c in "ʘʬʭʞ" if c not in (self.letters or ""))
        self.prefixes: list[tuple[str, bool]] = [("", False)] * FIRST_FREE
        self.states: dict[object, int] = {}
        self.steps: dict[tuple[int, str], int] = {}

    def step(self, state: int, symbol: str) -> int:
        symbol = self._representative(symbol)
        if (state, symbol) not in self.steps:
            self.steps[state, symbol] = self._step(state, symbol)
        return self.steps[state, symbol]

    def _step(self, state: int, symbol: str) -> int:
        letter, separator = symbol.isalpha(), symbol == SEPARATOR
        if state == DEAD:
            return DEAD
        if state == START:
            return self._state(symbol, False) if letter else START
        if state in (LOST, LOST_PENDING):
            if letter or (state == LOST and is_mark(symbol)):
                return DEAD
            return LOST_PENDING if state == LOST and not separator else START
        prefix, pending = self.prefixes[state]
        if letter or (is_mark(symbol) and not pending):
            return self._state(prefix + APOSTROPHE * pending + symbol, False)
        if symbol == APOSTROPHE and not pending:
            return self._state(prefix, True)
        return START if self.filter(prefix) else DEAD

    def _state(self, prefix: str, pending: bool) -> int:
        if not self.filter.prefix(prefix):
            return DEAD
        if pending and not (self.filter(prefix) or self.filter.prefix(prefix + APOSTROPHE)):
            return DEAD
        residual = (self.filter.residual(prefix), pending)
        if residual not in self.states:
            self.states[residual] = len(self.prefixes)
            self.prefixes.append((prefix, pending))
        return self.states[residual]

    def columns(self, symbols: str) -> np.ndarray:
        return np.array([ord(self._representative(symbol)) for symbol in symbols], np.int64)

    def _representative(self, symbol: str) -> str:
        """The letter that stands for all those that the filter does not tell apart."""
        alike = self.letters is not None and symbol not in self.letters and symbol.isalpha()
        return self.other if alike else symbol

    def move(self, states: np.ndarray, columns: np.ndarray) -> np.ndarray:
        pairs, inverse = np.unique(states.astype(np.int64) << 21 | columns, return_inverse=True)
        moved = [self.step(pair >> 21, chr(pair & 0x1FFFFF)) for pair in pairs.tolist()]
        return np.array(moved, np.int32)[inverse]

    def pending(self, state: int) -> bool:
        return state == LOST_PENDING or self.prefixes[state][1]

    def alphabet(self) -> frozenset[str] | None:
        return None


def trie(words: list[str], column: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """The trie of sorted words: children [nodes, columns] (0: none) and accepted nodes [nodes]."""
    width = max(map(len, words))
    points = np.array(words, f"U{width}").view(np.uint32).reshape(len(words), width)
    known = np.array(sorted(map(ord, column)), np.uint32)
    ranked = np.array([0, *(column[chr(point)] for point in known.tolist())])
    codes = ranked[np.where(points > 0, 1 + np.searchsorted(known, points), 0)]  # [words, width]
    differs = np.ones(codes.shape, bool)
    differs[1:] = np.logical_or.accumulate(codes[1:] != codes[:-1], axis=1)
    fresh = differs & (codes > 0)  # [words, width]: this word is the first with this prefix
    node = np.zeros(codes.shape, np.int32)
    node[fresh] = 1 + np.arange(fresh.sum())
    node = np.maximum.accumulate(node, axis=0)  # sorted words: a prefix is the last one begun
    parent = np.concatenate([np.zeros((len(words), 1), np.int32), node[:, :-1]], axis=1)
    child = np.zeros((1 + fresh.sum(), 1 + max(column.values())), np.int32)
    child[parent[fresh], codes[fresh]] = node[fresh]
    accepts = np.zeros(len(child), bool)
    lengths = np.array([len(word) for word in words])
    accepts[node[np.arange(len(words)), lengths - 1]] = True
    return child, accepts


def closed(child: np.ndarray, accepts: np.ndarray, marks: list[int]) -> tuple[np.ndarray, int]:
    """The transition table of whole texts from a trie with root 0, and its first pending state.

    Leaves are all alike (accepted, no way on): one state. So are the pending states of words that
    no apostrophe continues; the others come last.
    """
    inner = np.asarray(child.any(1))
    inner[0] = True
    leaf, ending = FIRST_FREE, FIRST_FREE + 1
    state = np.full(len(child), leaf, np.int32)
    state[inner] = np.concatenate([[START], FIRST_FREE + 2 + np.arange(inner.sum() - 1)])
    state_of_child = np.where(child > 0, state[child], DEAD)
    joined = np.flatnonzero(child[:, 3])  # nodes that an apostrophe continues
    pending = FIRST_FREE + 1 + inner.sum() + np.arange(len(joined))
    table = np.zeros((FIRST_FREE + 1 + inner.sum() + len(joined), child.shape[1]), np.int32)
    table[state[inner]] = state_of_child[inner]
    after = np.where(accepts, START, DEAD)
    table[state, 2] = after
    table[state, 3] = np.where(accepts, ending, DEAD)
    table[state[joined], 3] = pending
    table[pending] = state_of_child[child[joined, 3]]
    for column in (2, 3, *marks):
        table[pending, column] = after[joined]
        table[[START, ending, LOST_PENDING], column] = START
    table[LOST, 2], table[LOST, 3] = START, LOST_PENDING
    return table, int(FIRST_FREE + 1 + inner.sum())
