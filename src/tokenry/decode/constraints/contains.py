"""Contains: texts in which each of some strings occurs somewhere, however tokens cut them.

The state is a state of the Aho-Corasick automaton of the strings, over bytes, and the set of the
strings that were already met. No token is ever refused; the text may not end before the set is
full. Occurrences may overlap, and strings may contain each other.

    Contains(["café", "mat"], tokenizer)     # in either order

A model that does not think of the strings by itself goes on for ever: combine with `Length`, and
sample with something that looks ahead or weighs whole texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenry.decode.constraints.base import Constraint, Example, State, constraint, eos_of, refuse
from tokenry.decode.constraints.stop import as_bytes
from tokenry.text.string_search import StringSearch, TokenTrie


@constraint("contains", examples=lambda: _examples())
class Contains(Constraint):
    """Texts that contain every one of `strings` (str, or bytes).

    Special tokens spell nothing and are never allowed.

    Args:
        tokenizer: of transformers, or the bytes of every token.
        eos: the ids that may end a text (default: the tokenizer's).
    """

    def __init__(
        self, strings: Sequence[str | bytes], tokenizer: Any, eos: Sequence[int] | None = None
    ):
        self.search = StringSearch(as_bytes(strings, "string to be contained"))
        self.trie = TokenTrie.of(tokenizer)
        self.vocab_size, self.eos = len(self.trie), eos_of(tokenizer, eos)
        self.spelled = torch.tensor([bool(piece) for piece in self.trie.pieces])

    def initial(self) -> State:
        return _ContainsState(self, 0, frozenset(), False)


@dataclass(frozen=True)
class _ContainsState:
    constraint: Contains
    at: int
    met: frozenset[int]
    finished: bool
    mask_cost: float = 1.0

    @property
    def missing(self) -> tuple[bytes, ...]:
        """The strings that have not occurred yet: what a critic may want to know."""
        strings = enumerate(self.constraint.search.strings)
        return tuple(string for number, string in strings if number not in self.met)

    @property
    def complete(self) -> bool:
        return not self.finished and len(self.met) == len(self.constraint.search.strings)

    def allows(self, token: int) -> bool:
        if token in self.constraint.eos:
            return self.complete
        inside = 0 <= token < self.constraint.vocab_size
        return not self.finished and inside and bool(self.constraint.trie.pieces[token])

    def mask(self) -> Tensor:
        allowed = self.constraint.spelled & (not self.finished)
        allowed[list(self.constraint.eos)] = self.complete
        return allowed

    def advance(self, token: int) -> State:
        if not self.allows(token):
            missing = [string.decode(errors="replace") for string in self.missing]
            raise refuse(token, "after the end" if self.finished else f"while {missing} is missing")
        if token in self.constraint.eos:
            return _ContainsState(self.constraint, self.at, self.met, True)
        at, met = self.constraint.search.read(self.constraint.trie.pieces[token], self.at)
        return _ContainsState(self.constraint, at, self.met | met, False)


def _examples() -> list[Example]:
    return [
        Example(
            lambda t: Contains(["the", "eat", "é"], t), ["café, the weather: eat"], ["café, the"]
        )
    ]
