"""Suffix automaton: all substrings of a growing sequence, with what followed each of them.

A state stands for the substrings that end at the same places. `length` is that of the longest of
them; the `link` leads to the longest suffix that ends in more places. Reading a token costs O(1)
amortised; a sequence of n tokens has at most 2n states.

The last state's link is the longest suffix of the sequence that occurred before: what followed it
there is the classical guess of what comes next.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Match(NamedTuple):
    """A substring of the sequence: the state it belongs to, and how many tokens it has."""

    state: int
    length: int


class SuffixAutomaton:
    """The automaton of a sequence of tokens, read from left to right.

    next[state]: token -> state. link, length: per state (see above); link[0] is -1. count[state]:
    how often the state's substrings occurred. latest[state]: the position after their last
    occurrence. Both are exact at all times, at the price of a walk along the links per token.
    """

    def __init__(self, tokens: Iterable[int] = ()):
        self.next: list[dict[int, int]] = [{}]
        self.link, self.length, self.count, self.latest = [-1], [0], [0], [0]
        self.last, self.size = 0, 0
        self.extend(tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        for token in tokens:
            self._append(token)

    def _append(self, token: int) -> None:
        self.size += 1
        new = self._state(self.size, {}, -1)
        state = self.last
        while state >= 0 and token not in self.next[state]:
            self.next[state][token] = new
            state = self.link[state]
        if state < 0:
            self.link[new] = 0
        else:
            target = self.next[state][token]
            if self.length[target] == self.length[state] + 1:
                self.link[new] = target
            else:
                self.link[new] = self._split(state, token, target)
        self.last = new
        while new > 0:  # the root's substring, the empty one, is not counted
            self.count[new] += 1
            self.latest[new] = self.size
            new = self.link[new]

    def _split(self, state: int, token: int, target: int) -> int:
        """The shorter substrings of `target` get a state of their own: they occur once more."""
        clone = self._state(
            self.length[state] + 1, dict(self.next[target]), self.link[target], self.count[target],
            self.latest[target],
        )  # fmt: skip
        self.link[target] = clone
        while state >= 0 and self.next[state].get(token) == target:
            self.next[state][token] = clone
            state = self.link[state]
        return clone

    def _state(
        self, length: int, following: dict[int, int], link: int, count: int = 0, latest: int = 0
    ) -> int:
        self.next.append(following)
        self.link.append(link)
        self.length.append(length)
        self.count.append(count)
        self.latest.append(latest)
        return len(self.next) - 1

    def suffix(self) -> Match:
        """The longest suffix of the sequence that also occurred before its end."""
        state = self.link[self.last] if self.last else 0
        return Match(state, self.length[state])

    def follow(self, match: Match, token: int) -> Match:
        """The longest substring that ends with `match` (or a suffix of it) and then `token`."""
        state, length = match
        while state >= 0 and token not in self.next[state]:
            state = self.link[state]
            length = self.length[state] if state >= 0 else 0
        return Match(self.next[state][token], length + 1) if state >= 0 else Match(0, 0)

    def following(self, match: Match) -> list[tuple[int, int]]:
        """Tokens that followed the match, with how often they did, in no order of meaning."""
        return [(token, self.count[state]) for token, state in self.next[match.state].items()]
