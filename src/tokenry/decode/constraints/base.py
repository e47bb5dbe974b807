"""What a constraint is: a language of token sequences, walked by states that never change.

A `Constraint` says which texts are wanted. It is read token by token: `initial()` gives the state
of the empty text, `state.advance(token)` the state after one more token. A state is immutable, so
the particles of a sampler or the branches of a tree can hold the same one, and advancing one of
them leaves the others where they were.

A state answers two questions: `allows(token)`, may the text go on with this token (one cheap
check), and `complete`, may the text end here. The end-of-sequence tokens are allowed exactly where
the text is complete, and nothing is allowed after them. `mask()` is `allows` of the whole
vocabulary.

Constraints over the same vocabulary combine: `a & b` wants both, `a | b` wants at least one, `~a`
wants the texts that `a` does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from tokenry.core.errors import ConstraintError, VocabularyError
from tokenry.core.registry import Role


class State(Protocol):
    """One point in the reading of a text. Never changes; `advance` gives a new one."""

    @property
    def complete(self) -> bool:
        """Whether the text may end here."""
        ...

    @property
    def finished(self) -> bool:
        """Whether an end-of-sequence token was read: no token is allowed any more."""
        ...

    @property
    def mask_cost(self) -> float:
        """How many single checks `mask()` is worth in time."""
        ...

    def allows(self, token: int) -> bool:
        """Whether the text may go on with `token`; False for ids outside the vocabulary."""
        ...

    def mask(self) -> Tensor:
        """bool `[V]`: `allows` of every token."""
        ...

    def advance(self, token: int) -> State:
        """The state after `token`.

        Raises:
            ConstraintError: it is not allowed.
        """
        ...


class Constraint(Protocol):
    """The role: a language L over the vocabulary, read token by token; y is wanted if y is in L.

    Attributes:
        vocab_size: V. eos: the tokens that may end a text, where the text so far is in L.
    """

    vocab_size: int
    eos: frozenset[int]

    def initial(self) -> State:
        """The state of the empty text.

        Raises:
            ConstraintError: no text can satisfy it.
        """
        ...

    def begin(self, prompt: Sequence[int]) -> State:
        """The state of the empty text after a prompt: `initial`, unless the prompt matters, as it
        does where its last word may go on."""
        return self.initial()

    def __and__(self, other: Constraint) -> Constraint:
        return combine("and", self, other)

    def __or__(self, other: Constraint) -> Constraint:
        return combine("or", self, other)

    def __invert__(self) -> Constraint:
        return Complement(self)


class Example(NamedTuple):
    """A constraint as its contract test takes it.

    Attributes:
        make: it, for a byte-level tokenizer.
        accepts: texts that satisfy it.
        refuses: texts that do not.
    """

    make: Callable[[Any], Constraint]
    accepts: Sequence[str] = ()
    refuses: Sequence[str] = ()


constraint = Role("constraint", Constraint, ("tokenry.decode.constraints",))


class Anything(Constraint):
    """Every text: what an unconstrained generation is read by."""

    def __init__(self, vocab_size: int, eos: Sequence[int] | frozenset[int]):
        self.vocab_size = vocab_size
        self.eos = frozenset(eos)

    def initial(self) -> State:
        return _AnyState(self, False)


class Combination(Constraint):
    """Texts that satisfy all parts (`how="and"`) or at least one of them (`how="or"`).

    The parts of a disjunction that a text has left are forgotten. A conjunction knows a token's
    verdict from its parts, not whether they still have a text in common: it can run into a dead
    end, a state that is not complete and allows nothing.
    """

    def __init__(self, how: str, parts: Sequence[Constraint]):
        first, *others = parts
        for other in others:
            if (other.vocab_size, other.eos) != (first.vocab_size, first.eos):
                raise VocabularyError(
                    f"constraints over different vocabularies cannot be combined: "
                    f"{first.vocab_size} tokens ending with {sorted(first.eos)}, against "
                    f"{other.vocab_size} ending with {sorted(other.eos)}"
                )
        self.how = how
        self.parts = tuple(parts)
        self.vocab_size, self.eos = first.vocab_size, first.eos

    def initial(self) -> State:
        return self.begin(())

    def begin(self, prompt: Sequence[int]) -> State:
        return _CombinedState(self, tuple(part.begin(prompt) for part in self.parts))


class Complement(Constraint):
    """Texts that do not satisfy `part`.

    Every token is allowed, as a text that `part` may still accept can leave its language later;
    only the end waits until it has. Where `part` accepts every continuation, that is never.
    """

    def __init__(self, part: Constraint):
        self.part = part
        self.vocab_size, self.eos = part.vocab_size, part.eos

    def initial(self) -> State:
        return self.begin(())

    def begin(self, prompt: Sequence[int]) -> State:
        return _OutsideState(self, self.part.begin(prompt))

    def __invert__(self) -> Constraint:
        return self.part


def combine(how: str, *constraints: Constraint) -> Combination:
    """Conjunction ("and") or disjunction ("or"); nested ones of the same kind become one."""
    parts: list[Constraint] = []
    for constraint in constraints:
        nested = isinstance(constraint, Combination) and constraint.how == how
        parts.extend(constraint.parts if nested else [constraint])  # type: ignore[union-attr]
    return Combination(how, parts)


def refuse(token: int, where: str) -> ConstraintError:
    """The error of an `advance` by a token that is not allowed."""
    return ConstraintError(f"token {token} is not allowed {where}; ask allows() or mask() first")


def eos_of(tokenizer: Any, eos: Sequence[int] | None) -> frozenset[int]:
    """The end-of-sequence ids to use: those given, else the tokenizer's."""
    if eos is None:
        eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    if not eos:
        raise ConstraintError(
            "the tokenizer has no end-of-sequence token, so a text could never end; pass eos=[...]"
        )
    return frozenset(eos)


@dataclass(frozen=True)
class _AnyState:
    constraint: Anything
    finished: bool
    mask_cost: float = 1.0

    @property
    def complete(self) -> bool:
        return not self.finished

    def allows(self, token: int) -> bool:
        return not self.finished and 0 <= token < self.constraint.vocab_size

    def mask(self) -> Tensor:
        return torch.full((self.constraint.vocab_size,), not self.finished)

    def advance(self, token: int) -> State:
        if not self.allows(token):
            raise refuse(token, "after the end")
        return _AnyState(self.constraint, True) if token in self.constraint.eos else self


@dataclass(frozen=True)
class _CombinedState:
    constraint: Combination
    parts: tuple[State, ...]

    @property
    def _every(self) -> bool:
        return self.constraint.how == "and"

    @property
    def complete(self) -> bool:
        verdicts = (part.complete for part in self.parts)
        return all(verdicts) if self._every else any(verdicts)

    @property
    def finished(self) -> bool:
        return all(part.finished for part in self.parts)

    @property
    def mask_cost(self) -> float:
        return sum(part.mask_cost for part in self.parts)

    def allows(self, token: int) -> bool:
        verdicts = (part.allows(token) for part in self.parts)
        return all(verdicts) if self._every else any(verdicts)

    def mask(self) -> Tensor:
        masks = [part.mask() for part in self.parts]
        return reduce(torch.logical_and if self._every else torch.logical_or, masks)

    def advance(self, token: int) -> State:
        going = tuple(part for part in self.parts if part.allows(token))
        if not going or (self._every and len(going) < len(self.parts)):
            raise refuse(token, f"by {self.constraint.how!r} of {len(self.parts)} constraints")
        return _CombinedState(self.constraint, tuple(part.advance(token) for part in going))


@dataclass(frozen=True)
class _OutsideState:
    constraint: Complement
    part: State | None  # None: the text has left the part's language for good
    finished: bool = False
    mask_cost: float = 1.0

    @property
    def complete(self) -> bool:
        return not self.finished and not (self.part is not None and self.part.complete)

    def allows(self, token: int) -> bool:
        if token in self.constraint.eos:
            return self.complete
        return not self.finished and 0 <= token < self.constraint.vocab_size

    def mask(self) -> Tensor:
        allowed = torch.full((self.constraint.vocab_size,), not self.finished)
        allowed[list(self.constraint.eos)] = self.complete
        return allowed

    def advance(self, token: int) -> State:
        if not self.allows(token):
            raise refuse(token, "outside a constraint: the text satisfies it or has ended")
        if token in self.constraint.eos:
            return _OutsideState(self.constraint, self.part, True)
        inside = self.part is not None and self.part.allows(token)
        return _OutsideState(self.constraint, self.part.advance(token) if inside else None)  # type: ignore[union-attr]
