"""Stop strings: texts that end as soon as one of some strings is written, however tokens cut it.

A stop string is a property of the text, and tokens do not respect it: "\\n\\nUser:" may come in
five tokens, or begin in the middle of one. The constraint reads bytes: its state is a state of the
Aho-Corasick automaton of the strings, plus one that stands for having gone on behind a stop string.

    free      no string written so far: any token may come, the end may not (unless `early`)
    stopped   the text ends with a stop string, its first: only the end may come
    over      the last token ended one and went on: refused, unless `overshoot`

Under a model that would rather go on, a text counts with the probability that the model gives to
ending there. What serving engines call a stop string is another model: one that ends at the string
for sure. `Ending` makes it of any model, and belongs into the generation's processors:

    stop = Stop(["\\n\\n", "User:"], tokenizer, overshoot=True)
    found = generate(loaded, ids, processors=[Ending(stop, ids)])
    stop.before(found.texts[0])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenry.core.errors import ConstraintError
from tokenry.decode.constraints.base import Constraint, Example, State, constraint, eos_of, refuse
from tokenry.text.string_search import StringSearch, TokenTrie

MASK_COST = 4.0  # in single checks: few states occur, and the mask of each is computed once


@constraint("stop", examples=lambda: _examples())
class Stop(Constraint):
    """Texts that end right after the first occurrence of one of `strings`.

    Special tokens spell nothing and are never allowed.

    Args:
        strings: str, or bytes.
        tokenizer: of transformers, or the bytes of every token.
        overshoot: whether the token that completes a string may go on behind it (`before` cuts the
            text).
        early: whether a text may also end without any of the strings.
        eos: the ids that may end a text (default: the tokenizer's).
    """

    def __init__(
        self,
        strings: Sequence[str | bytes],
        tokenizer: Any,
        *,
        overshoot: bool = False,
        early: bool = False,
        eos: Sequence[int] | None = None,
    ):
        self.search = StringSearch(as_bytes(strings, "stop string"))
        self.trie = TokenTrie.of(tokenizer)
        self.vocab_size, self.eos = len(self.trie), eos_of(tokenizer, eos)
        self.overshoot, self.early = overshoot, early
        self.over = len(self.search.table)
        # reading on from a stop string, or from behind it, leads behind it
        table = np.concatenate([self.search.table, np.full((1, 256), self.over, np.int32)])
        table[:-1][self.search.hits] = self.over
        self.table = table
        self._after: dict[int, np.ndarray] = {}
        self._masks: dict[int, Tensor] = {}

    def initial(self) -> State:
        return _StopState(self, 0, False)

    def before(self, text: str) -> str:
        """The text up to its first stop string; the whole of it if there is none."""
        data = text.encode()
        starts = [start for s in self.search.strings if (start := data.find(s)) >= 0]
        return data[: min(starts)].decode(errors="ignore") if starts else text

    def certain(self, text: str) -> str:
        """What of a text that goes on is sure to stay: it ends where a stop string may begin."""
        data = text.encode()
        state, matched = self.search.read(data)
        if matched:
            return self.before(text)
        return data[: len(data) - int(self.search.depth[state])].decode(errors="ignore")

    def after(self, state: int, token: int) -> int:
        """Where a token leads."""
        if state in self._after:
            return int(self._after[state][token])
        for byte in self.trie.pieces[token]:
            state = int(self.table[state, byte])
        return state

    def mask(self, state: int) -> Tensor:
        """`allows` of every token but the ends."""
        if state not in self._masks:
            self._after[state] = self.trie.walk(self.table, state)[0]
            allowed = torch.tensor([bool(piece) for piece in self.trie.pieces])
            if not self.overshoot:
                allowed &= torch.from_numpy(self._after[state] != self.over)
            self._masks[state] = allowed
        return self._masks[state]


@dataclass(frozen=True)
class _StopState:
    constraint: Stop
    at: int
    finished: bool
    mask_cost: float = MASK_COST

    @property
    def stopped(self) -> bool:
        return self.at == self.constraint.over or bool(self.constraint.search.ends[self.at])

    @property
    def complete(self) -> bool:
        return not self.finished and (self.constraint.early or self.stopped)

    def allows(self, token: int) -> bool:
        constraint = self.constraint
        if token in constraint.eos:
            return self.complete
        if self.finished or self.stopped or not 0 <= token < constraint.vocab_size:
            return False
        if not constraint.trie.pieces[token]:
            return False
        return constraint.overshoot or constraint.after(self.at, token) != constraint.over

    def mask(self) -> Tensor:
        constraint = self.constraint
        if self.finished or self.stopped:
            allowed = torch.zeros(constraint.vocab_size, dtype=torch.bool)
        else:
            allowed = constraint.mask(self.at).clone()
        allowed[list(constraint.eos)] = self.complete
        return allowed

    def advance(self, token: int) -> State:
        if not self.allows(token):
            where = "after the end" if self.finished else "where the text has to stop"
            raise refuse(token, where)
        if token in self.constraint.eos:
            return _StopState(self.constraint, self.at, True)
        return _StopState(self.constraint, self.constraint.after(self.at, token), False)


def as_bytes(strings: Sequence[str | bytes], what: str) -> list[bytes]:
    """Strings as bytes.

    Raises:
        ConstraintError: there are none or one of them is empty.
    """
    if isinstance(strings, str | bytes):
        strings = [strings]
    if not strings:
        raise ConstraintError(f"no {what} was given: give at least one")
    encoded = [string.encode() if isinstance(string, str) else bytes(string) for string in strings]
    if b"" in encoded:
        raise ConstraintError(
            f"{what} {encoded.index(b'') + 1} of {len(encoded)} is empty, and the empty string is "
            "everywhere: leave it out"
        )
    return encoded


def _examples() -> list[Example]:
    return [
        Example(lambda t: Stop(["the", "e ", "東京"], t), ["a cat on 東京"], ["a cat on a ma"]),
        Example(lambda t: Stop(["he", "京"], t, overshoot=True, early=True), ["a cat"], ["he he"]),
    ]
