"""Length: texts of at least so many and at most so many tokens.

Before `minimum` tokens the text may not end; at `maximum` it must. The end token does not count.
`Length(20, 20, tokenizer)` asks for exactly 20 tokens: together with an exact sampler, or with a
search for the mode, that is the model's own distribution over texts of that length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenry.core.checks import in_range
from tokenry.core.errors import ConstraintError
from tokenry.decode.constraints.base import Constraint, Example, State, constraint, eos_of, refuse


@constraint("length", examples=lambda: _examples())
class Length(Constraint):
    """Texts of `minimum` to `maximum` tokens; None is no upper limit.

    Args:
        tokenizer: of transformers, or anything whose `len` is the size of the vocabulary.
        eos: the ids that may end a text (default: the tokenizer's).
    """

    def __init__(
        self,
        minimum: int,
        maximum: int | None,
        tokenizer: Any,
        eos: Sequence[int] | None = None,
    ):
        in_range("minimum", minimum, "[0, inf)", integer=True)
        in_range("maximum", maximum, "[0, inf)", integer=True, optional=True)
        if maximum is not None and maximum < minimum:
            raise ConstraintError(
                f"no text has at least {minimum} and at most {maximum} tokens: "
                "0 <= minimum <= maximum is needed"
            )
        self.minimum, self.maximum = minimum, maximum
        self.vocab_size, self.eos = len(tokenizer), eos_of(tokenizer, eos)

    def initial(self) -> State:
        return _LengthState(self, 0, False)


@dataclass(frozen=True)
class _LengthState:
    constraint: Length
    count: int
    finished: bool
    mask_cost: float = 1.0

    @property
    def complete(self) -> bool:
        return not self.finished and self.count >= self.constraint.minimum

    @property
    def may_grow(self) -> bool:
        maximum = self.constraint.maximum
        return not self.finished and (maximum is None or self.count < maximum)

    def allows(self, token: int) -> bool:
        if token in self.constraint.eos:
            return self.complete
        return self.may_grow and 0 <= token < self.constraint.vocab_size

    def mask(self) -> Tensor:
        allowed = torch.full((self.constraint.vocab_size,), self.may_grow)
        allowed[list(self.constraint.eos)] = self.complete
        return allowed

    def advance(self, token: int) -> State:
        if not self.allows(token):
            limits = f"{self.constraint.minimum} to {self.constraint.maximum}"
            raise refuse(token, f"after {self.count} tokens of {limits}")
        # at most the minimum is remembered where there is no upper limit: equal states are equal
        grown = self.count + (token not in self.constraint.eos)
        if self.constraint.maximum is None:
            grown = min(grown, self.constraint.minimum)
        return _LengthState(self.constraint, grown, token in self.constraint.eos)


def _examples() -> list[Example]:
    return [Example(lambda t: Length(2, 4, t), (), ["the cat on the mat and on the mat"])]
