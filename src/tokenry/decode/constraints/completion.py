"""Completion: code whose names a completion engine could still complete.

After every token the engine that an editor asks on each key press is asked: can what is typed at
the caret still be completed? For a token s after the text x,

    feasible(x, s)  =  s triggers no completion: its last character is neither of a name nor a dot,
                       or s is a keyword (that does not go on with the name before it)
                    or the engine does not know (it answers None)
                    or some completion (source, target) at the end of x s has source as a prefix of
                       target; the rest of target is a *continuation*

Feasible is only necessary: a text that compiles is never refused, as far as the engine is complete;
a text that passes may still be wrong. Sampling from the feasible tokens, rejected ones banned
one by one, is exact and asks about few of them.

*Active completion.* Where all continuations begin with the same characters A, the text has to go on
with A: mode "constrain" leaves only tokens that agree with it, which needs no engine, and "insert"
offers it as `state.pending`, to be inserted without asking the model (`tokenry.decode.repilot`).

*Memory.* Answers are kept by the text before the caret, so that repeated samples do not ask again,
and a refused s refuses every longer string that goes on with its last name: what no name begins
with, none begins with when it grows. Other strings are asked about, so that no verdict depends on
what was asked before.

Source: Copiloting the Copilots: Fusing Large Language Models with Completion Engines for Automated
Program Repair (arXiv 2309.00608). `whole_names` is ours.
"""

from __future__ import annotations

import keyword
from bisect import bisect_left
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from tokenry.core.checks import one_of
from tokenry.decode.constraints.base import Constraint, Example, constraint, eos_of, refuse
from tokenry.decode.constraints.completion_engine import (
    NAME,
    CompletionEngine,
    common_start,
    last_name,
    of_name,
    read_answer,
    triggers,
)
from tokenry.decode.constraints.completion_memo import Memo
from tokenry.decode.constraints.predicate import extend
from tokenry.text.vocabulary import token_bytes

Mode = Literal["constrain", "insert", "off"]


@constraint("completion", paper=54, examples=lambda: _examples())
class Completion(Constraint):
    """Texts that fill the hole between `prefix` and `suffix` with names that the engine knows.

    prefix, suffix: what stands in the file before and after the text. prefix None: the prompt.
    mode: of active completion; "off" has none. keywords: names that are always there, and tokens
    that need no engine.
    whole_names: also refuse to leave a name unfinished ("le(" where "len" was meant), whatever
        tokens it is made of; asks the engine more often.
    eos: the ids that may end a text, which they may after any token except inside a character, an
        active completion or, with whole_names, a name.
    memo: what the engine has said so far; pass the same one for the same engine to go on with it.

    A mask asks the engine about every name in the vocabulary, which takes minutes with a real one:
    sample by single checks (`AWRS`, or `complete_code`).
    """

    def __init__(
        self,
        engine: CompletionEngine,
        tokenizer: Any,
        *,
        prefix: str | None = None,
        suffix: str = "",
        mode: Mode = "constrain",
        whole_names: bool = False,
        keywords: Collection[str] = frozenset(keyword.kwlist),
        eos: Sequence[int] | None = None,
        memo: Memo | None = None,
    ):
        one_of("mode", mode, ("constrain", "insert", "off"))
        self.engine, self.prefix, self.suffix = engine, prefix, suffix
        self.mode, self.whole_names, self.keywords = mode, whole_names, frozenset(keywords)
        self.memo = Memo() if memo is None else memo
        self.eos = eos_of(tokenizer, eos)
        self.spelling = token_bytes(tokenizer)
        self.vocab_size = len(self.spelling)
        self._sorted = sorted((piece, token) for token, piece in enumerate(self.spelling) if piece)

    def initial(self) -> CompletionState:
        return CompletionState(self, self.prefix or "")

    def begin(self, prompt: Sequence[int]) -> CompletionState:
        if self.prefix is not None:
            return self.initial()
        read = b"".join(self.spelling[token] for token in prompt if token < self.vocab_size)
        return CompletionState(self, read.decode(errors="replace"))

    def continuations(self, before: str, added: str) -> tuple[str, ...] | None:
        """How the name at the end of `before + added` may go on; () if it cannot, None: unknown."""
        memo, caret = self.memo, (before + added, self.suffix)
        if caret in memo.answers:
            memo.remembered += 1
        elif memo.denies((before, self.suffix), added):
            return ()
        else:
            memo.calls += 1
            answer = self.engine.complete(before + added + self.suffix, len(before + added))
            memo.answers[caret] = self.with_keywords(before + added, read_answer(answer))
            if memo.answers[caret] == ():
                memo.deny((before, self.suffix), added)
        return memo.answers[caret]

    def with_keywords(self, text: str, rests: tuple[str, ...] | None) -> tuple[str, ...] | None:
        """Adds how the name at the end of a text may become a keyword."""
        typed = last_name(text)
        if rests is None or not typed or text[: -len(typed)].endswith("."):
            return rests
        words = (word[len(typed) :] for word in sorted(self.keywords) if word.startswith(typed))
        return tuple(dict.fromkeys([*rests, *words]))

    def feasible(self, before: str, added: str) -> bool:
        """Whether a text that was feasible until `before` is so with `added`."""
        if self.whole_names:
            ends = (m.end() for m in NAME.finditer(added) if m.end() < len(added))
            if not all(self.is_whole(before, added[:end]) for end in ends):
                return False
        return self.is_trivial(before, added) or self.continuations(before, added) != ()

    def is_trivial(self, before: str, added: str) -> bool:
        """Whether no completion is triggered by `added`."""
        return not triggers(added[-1]) or (
            added.strip() in self.keywords and self.ends_with_keyword(before + added)
        )

    def ends_with_keyword(self, text: str) -> bool:
        """Whether the last name of a text is a keyword, and no attribute of that name."""
        name = last_name(text)
        return name in self.keywords and not text[: -len(name)].endswith(".")

    def is_whole(self, before: str, added: str) -> bool:
        """Whether the name at the end of `before + added` may end there."""
        if self.ends_with_keyword(before + added):
            return True
        rest = self.continuations(before, added)
        return rest is None or "" in rest

    def agreeing(self, pending: bytes) -> list[int]:
        """The tokens that begin with `pending` or that it begins with."""
        first = bisect_left(self._sorted, (pending, -1))
        last = bisect_left(self._sorted, (pending + b"\xff" * 4, -1))
        tokens = [token for _, token in self._sorted[first:last]]
        for length in range(1, len(pending)):
            index = bisect_left(self._sorted, (pending[:length], -1))
            while index < len(self._sorted) and self._sorted[index][0] == pending[:length]:
                tokens.append(self._sorted[index][1])
                index += 1
        return tokens


@dataclass(frozen=True)
class CompletionState:
    """
    Args:
        before: the file up to the caret.
        undecided: the first bytes of a character that is not whole yet.
        rests: how the name being typed may go on, None if unknown.
        pending: the bytes that an active completion wants next.
    """

    constraint: Completion
    before: str
    undecided: bytes = b""
    finished: bool = False
    rests: tuple[str, ...] | None = None
    pending: bytes = b""
    _verdicts: dict[int, bool] = field(default_factory=dict, compare=False, repr=False)

    @property
    def complete(self) -> bool:
        open_name = self._must_agree or (self._unfinished_name and self.constraint.whole_names)
        return not (self.finished or self.undecided or open_name)

    @property
    def mask_cost(self) -> float:
        return float(len(self.pending) if self._must_agree else self.constraint.vocab_size)

    def allows(self, token: int) -> bool:
        if token in self.constraint.eos:
            return self.complete
        if token not in self._verdicts:
            self._verdicts[token] = self._judge(token)
            self.constraint.memo.pruned += not self._verdicts[token]
        return self._verdicts[token]

    def mask(self) -> Tensor:
        size = self.constraint.vocab_size
        candidates = self.constraint.agreeing(self.pending) if self._must_agree else range(size)
        mask = torch.zeros(size, dtype=torch.bool)
        mask[[token for token in candidates if self.allows(token)]] = True
        for token in self.constraint.eos:
            mask[token] = self.complete
        return mask

    def advance(self, token: int) -> CompletionState:
        if not self.allows(token):
            raise refuse(token, f"after {self.before[-40:]!r}")
        source = self.constraint
        if token in source.eos:
            return CompletionState(source, self.before, self.undecided, finished=True)
        piece = source.spelling[token]
        decoded = extend(self.undecided, piece)
        assert decoded is not None  # as `allows` has found
        added, undecided = decoded
        before = self.before + added
        if self._inside(piece):
            source.memo.forced += 1
            rests = tuple(rest[len(added) :] for rest in self.rests or ())
            return CompletionState(
                source, before, undecided, rests=rests, pending=self.pending[len(piece) :]
            )
        if not added:
            return CompletionState(source, before, undecided, rests=self.rests)
        if source.is_trivial(self.before, added):
            return CompletionState(source, before, undecided)
        rests = source.continuations(self.before, added)
        wanted = "" if source.mode == "off" or rests is None else common_start(rests) or ""
        # a character that is cut here ends the completion: it is not what A goes on with
        pending = b"" if undecided else wanted.encode()
        return CompletionState(source, before, undecided, rests=rests, pending=pending)

    @property
    def _must_agree(self) -> bool:
        return bool(self.pending) and self.constraint.mode == "constrain" and not self.finished

    @property
    def _unfinished_name(self) -> bool:
        return self.rests is not None and "" not in self.rests

    def _inside(self, piece: bytes) -> bool:
        return bool(self.pending) and self.pending.startswith(piece)

    def _judge(self, token: int) -> bool:
        source = self.constraint
        if self.finished or not 0 <= token < source.vocab_size or not source.spelling[token]:
            return False
        piece = source.spelling[token]
        decoded = extend(self.undecided, piece)
        if decoded is None or (self.before + decoded[0], source.suffix) in source.memo.dead:
            return False
        if self._inside(piece):
            return True
        if self._must_agree and not piece.startswith(self.pending):
            return False
        added = decoded[0]
        if not added:
            return True
        if source.whole_names and self._unfinished_name and not of_name(added[0]):
            return False
        return source.feasible(self.before, added)


def _examples() -> list[Example]:
    from tokenry.decode.constraints.completion_engine import NamesEngine

    engine = NamesEngine({"": ["cat", "there", "theory", "café"], "cat": ["mat", "sat"]})
    return [
        Example(lambda t: Completion(engine, t), ["cat.mat(the"], ["cat.dog"]),
        Example(
            lambda t: Completion(engine, t, whole_names=True, suffix="\n"),
            ["return cat.sat(café, 12)"],
            ["cat.ma(the)"],
        ),
    ]
