"""Predicates: any Python function on text as a constraint, correct below the level of characters.

Two functions describe the language: `prefix(text)`, can the text be continued (or is it already) to
one that is wanted, and `complete(text)`, is it wanted as it stands. Tokens are bytes; a token may
end in the middle of a UTF-8 character. The predicate is then asked about the whole characters only,
and the cut one is passed on undecided until the next token completes it. Bytes that can never
become UTF-8 are refused, and a text cannot end inside a character.

A mask asks the predicate about every token, which is slow by nature: samplers that ask about single
tokens (AWRS) are made for such constraints.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from tokenry.decode.constraints.base import Constraint, Example, State, constraint, eos_of, refuse
from tokenry.text.vocabulary import token_bytes

CACHE_SIZE = 1 << 16
_new_decoder = codecs.getincrementaldecoder("utf-8")


@constraint("predicate", examples=lambda: _examples())
class Predicate(Constraint):
    """Texts for which `complete` is true, all of whose prefixes satisfy `prefix`.

    Special tokens spell nothing and are never allowed.

    Args:
        prefix: pure functions from a text to a truth value; their answers are cached. `prefix` may
            be generous: where it promises a continuation that does not exist, generation runs into
            a dead end.
        complete: as `prefix`.
        eos: the ids that may end a text (default: the tokenizer's).
    """

    def __init__(
        self,
        prefix: Callable[[str], bool],
        complete: Callable[[str], bool],
        tokenizer: Any,
        eos: Sequence[int] | None = None,
    ):
        self.prefix = lru_cache(CACHE_SIZE)(prefix)
        self.complete = lru_cache(CACHE_SIZE)(complete)
        self.eos = eos_of(tokenizer, eos)
        self.spelling = token_bytes(tokenizer)
        self.vocab_size = len(self.spelling)

    def initial(self) -> State:
        return _TextState(self, "", b"", False)


@dataclass(frozen=True)
class _TextState:
    constraint: Predicate
    text: str
    undecided: bytes  # the first bytes of a character that is not whole yet
    finished: bool
    _verdicts: dict[int, bool] = field(default_factory=dict, compare=False, repr=False)

    @property
    def mask_cost(self) -> float:
        return float(self.constraint.vocab_size)

    @property
    def complete(self) -> bool:
        whole = not self.finished and not self.undecided
        return whole and bool(self.constraint.complete(self.text))

    def allows(self, token: int) -> bool:
        if token in self.constraint.eos:
            return self.complete
        if token not in self._verdicts:
            self._verdicts[token] = self._judge(token)
        return self._verdicts[token]

    def mask(self) -> Tensor:
        return torch.tensor([self.allows(token) for token in range(self.constraint.vocab_size)])

    def advance(self, token: int) -> State:
        if not self.allows(token):
            raise refuse(token, f"after {self.text[-40:]!r}")
        if token in self.constraint.eos:
            return _TextState(self.constraint, self.text, self.undecided, True)
        decoded = extend(self.undecided, self.constraint.spelling[token])
        assert decoded is not None  # as `allows` has found
        return _TextState(self.constraint, self.text + decoded[0], decoded[1], False)

    def _judge(self, token: int) -> bool:
        spelling = self.constraint.spelling
        if self.finished or not 0 <= token < len(spelling) or not spelling[token]:
            return False
        decoded = extend(self.undecided, spelling[token])
        if decoded is None:
            return False
        # nothing whole was added: the prefix is the one that was accepted on the way here, but the
        # empty text has not been asked about yet
        if not decoded[0] and self.text:
            return True
        return bool(self.constraint.prefix(self.text + decoded[0]))


def extend(undecided: bytes, more: bytes) -> tuple[str, bytes] | None:
    """The whole characters of `undecided + more` and the bytes left over; None if not UTF-8."""
    decoder = _new_decoder()
    try:
        text = decoder.decode(undecided + more)
    except UnicodeDecodeError:
        return None
    return text, decoder.getstate()[0]


def _examples() -> list[Example]:
    words = ("naïve", "café", "東京", "🙂")
    starts = {word[:n] for word in words for n in range(len(word))}

    def ends(text: str) -> set[int]:
        """Where a run of words may end."""
        reached = {0}
        for at in range(len(text)):
            reached |= {at + len(w) for w in words if at in reached and text.startswith(w, at)}
        return reached

    def prefix(text: str) -> bool:
        return len(text) <= 12 and text[max(ends(text)) :] in starts

    def even(text: str) -> bool:
        return text.isdecimal() and int(text) % 2 == 0

    return [
        Example(  # characters that tokens cut
            lambda t: Predicate(prefix, lambda text: len(text) in ends(text) - {0}, t),
            ["café東京🙂"],
            ["cafe"],
        ),
        Example(
            lambda t: Predicate(lambda text: not text or text.isdecimal(), even, t),
            ["1234"],
            ["123"],
        ),
    ]
