"""Dictionary: translations that use, for every phrase of the source, one of its candidates.

A bilingual dictionary gives each matched source phrase i a set C_i of candidate translations; the
texts of the constraint are

    { y : for every i some c in C_i occurs in y }

Which candidate is left to the model: it disambiguates. An occurrence begins and ends at a boundary
of words, and case does not count (both are options). A text is read character by character,
whatever its tokens: folded, with its boundaries marked, it goes through the Aho-Corasick automaton
of all candidates; the state is where that stands, the character kind and the unfinished character
at the end, and the set of phrases covered. Any text can still become one that covers them all, so
no token of well-formed UTF-8 is refused and there is no dead end; only the end has to wait.

    dictionary = PhraseDictionary({"bank": ["Bank", "Ufer"], "river": "Fluss"})
    wanted = Dictionary.of(dictionary, "The bank of the river.", tokenizer)

Source: DICTDIS: Dictionary Constrained Disambiguation for Improved NMT (arXiv 2210.06996), whose
own constraints are soft: a model is trained to copy the candidates
(`model.layers.copy_mixture`). The hard form, for any language model, is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tokenry.core.errors import ConstraintError
from tokenry.decode.constraints.base import Constraint, Example, constraint, eos_of, refuse
from tokenry.decode.constraints.spelling import split_tail
from tokenry.text.phrase_dictionary import PhraseDictionary
from tokenry.text.string_search import StringSearch, TokenTrie
from tokenry.text.word_boundaries import (
    BOUNDARY,
    Kind,
    carried,
    folded,
    is_boundary,
    kind_of,
    marked,
)

PROMPT_WINDOW = 16  # tokens of a prompt that are searched for its last character


@constraint("dictionary", paper=31, examples=lambda: _examples())
class Dictionary(Constraint):
    """Texts that hold, for each of `phrases` (each the candidates of one phrase), a candidate.

    Special tokens spell nothing and are never allowed.

    Args:
        tokenizer: of transformers, or the bytes of every token.
        whole_words: candidates stand between boundaries of words; else anywhere, as beginnings of
            inflected forms do.
        fold_case: "haus" is "Haus".
        eos: the ids that may end a text (default: the tokenizer's).
    """

    def __init__(
        self,
        phrases: Sequence[Sequence[str]],
        tokenizer: Any,
        *,
        whole_words: bool = True,
        fold_case: bool = True,
        eos: Sequence[int] | None = None,
    ):
        self.phrases = tuple(
            (candidates,) if isinstance(candidates, str) else tuple(candidates)
            for candidates in phrases
        )
        self.whole_words, self.fold_case = whole_words, fold_case
        self.trie = TokenTrie.of(tokenizer)
        self.vocab_size, self.eos = len(self.trie), eos_of(tokenizer, eos)
        known = {piece for piece in self.trie.pieces if piece}
        for number, candidates in enumerate(self.phrases):
            if not candidates or "" in candidates:
                raise ConstraintError(
                    f"phrase {number} has the candidates {list(candidates)}: give each phrase at "
                    "least one, and no empty one"
                )
            if not any(can_spell(known, one.encode()) for one in candidates):
                raise ConstraintError(
                    f"no candidate of phrase {number}, {list(candidates)}, can be spelled with the "
                    "tokens of the vocabulary"
                )
        flat = [(number, one) for number, several in enumerate(self.phrases) for one in several]
        self.phrase_of = [number for number, _ in flat]
        self.search = StringSearch([self._written(one) for _, one in flat])
        self._masks: dict[bytes, Tensor] = {}

    @classmethod
    def of(
        cls, dictionary: PhraseDictionary, source: str, tokenizer: Any, **options: Any
    ) -> Dictionary:
        """The constraint of a source text: its matched phrases, each once."""
        matches = {match.phrase: match.candidates for match in dictionary(source)}
        return cls(list(matches.values()), tokenizer, **options)

    def initial(self) -> DictionaryState:
        return DictionaryState(self)

    def begin(self, prompt: Sequence[int]) -> DictionaryState:
        """The state after a prompt: a word that it leaves unfinished, the text would go on with."""
        pieces = [self.trie.pieces[t] if 0 <= t < self.vocab_size else b"" for t in prompt]
        recent = pieces[-PROMPT_WINDOW:]
        since = max((rank + 1 for rank, piece in enumerate(recent) if not piece), default=0)
        text = b"".join(recent[since:]).decode(errors="replace")
        before: Kind | None = None
        for character in text:
            before = carried(before, kind_of(character))
        return DictionaryState(self, before=before)

    def _written(self, candidate: str) -> bytes:
        if self.whole_words:
            return marked(candidate, fold_case=self.fold_case)
        return (folded(candidate) if self.fold_case else candidate).encode()

    def _mask(self, tail: bytes) -> Tensor:
        """The tokens that go on in UTF-8 behind the unfinished character `tail`."""
        if tail not in self._masks:
            pieces = self.trie.pieces
            self._masks[tail] = torch.tensor([continues(tail, piece) for piece in pieces])
        return self._masks[tail]


@dataclass(frozen=True)
class DictionaryState:
    """Where a text stands.

    Args:
        at: the automaton's state.
        before: the kind of the last character that is not a mark.
        tail: bytes of an unfinished character.
        covered: phrases met so far.
    """

    constraint: Dictionary
    at: int = 0
    before: Kind | None = None
    tail: bytes = b""
    covered: frozenset[int] = frozenset()
    finished: bool = False
    mask_cost: float = 1.0

    @property
    def missing(self) -> list[tuple[str, ...]]:
        """The candidates of every phrase that would not be covered if the text ended here."""
        constraint, covered = self.constraint, self.covered
        if constraint.whole_words:  # the end is a boundary
            covered = covered | self._phrases(constraint.search.step(self.at, BOUNDARY[0]))
        return [several for n, several in enumerate(constraint.phrases) if n not in covered]

    @property
    def complete(self) -> bool:
        return not (self.finished or self.tail or self.missing)

    def allows(self, token: int) -> bool:
        constraint = self.constraint
        if token in constraint.eos:
            return self.complete
        inside = not self.finished and 0 <= token < constraint.vocab_size
        return inside and continues(self.tail, constraint.trie.pieces[token])

    def mask(self) -> Tensor:
        constraint = self.constraint
        if self.finished:
            return torch.zeros(constraint.vocab_size, dtype=torch.bool)
        allowed = constraint._mask(self.tail).clone()
        allowed[list(constraint.eos)] = self.complete
        return allowed

    def advance(self, token: int) -> DictionaryState:
        constraint = self.constraint
        if not self.allows(token):
            raise refuse(token, f"while {self.missing} is missing" if self.missing else "here")
        if token in constraint.eos:
            return replace(self, finished=True)
        split = split_tail(self.tail + constraint.trie.pieces[token])
        assert split is not None  # as `allows` has found
        at, before, covered = self.at, self.before, self.covered
        for character in split[0]:
            kind = kind_of(character)
            if constraint.whole_words and is_boundary(before, kind):
                at = constraint.search.step(at, BOUNDARY[0])
                covered = covered | self._phrases(at)
            for byte in (folded(character) if constraint.fold_case else character).encode():
                at = constraint.search.step(at, byte)
            covered = covered | self._phrases(at)
            before = carried(before, kind)
        return DictionaryState(constraint, at, before, split[1], covered)

    def _phrases(self, at: int) -> frozenset[int]:
        constraint = self.constraint
        return frozenset(
            constraint.phrase_of[candidate] for candidate in constraint.search.ends[at]
        )


def continues(tail: bytes, piece: bytes) -> bool:
    """Whether a token's bytes may come behind an unfinished character; none may not."""
    if not piece or (tail and not 0x80 <= piece[0] < 0xC0):
        return False
    return (not tail and piece.isascii()) or split_tail(tail + piece) is not None


def can_spell(pieces: set[bytes], data: bytes) -> bool:
    """Whether some sequence of the pieces spells `data`."""
    reached = [True] + [False] * len(data)
    for end in range(1, len(data) + 1):
        reached[end] = any(reached[start] and data[start:end] in pieces for start in range(end))
    return reached[-1]


def _examples() -> list[Example]:
    phrases = [["the cat", "eat"], ["é"]]
    return [Example(lambda t: Dictionary(phrases, t), ["The Cat, É!"], ["the cats é"])]
