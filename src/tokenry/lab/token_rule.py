"""Rules on token ids as constraints: for toys, where what is wanted is a line of Python."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenry.decode.constraints.base import Constraint, State, refuse
from tokenry.tasks.worlds.toy_lm import may_get_odd, odd_sum

Rule = Callable[[tuple[int, ...]], bool]


@dataclass(frozen=True)
class TokenRule(Constraint):
    """Texts of ids for which `right` is true, and `possible` for all their prefixes.

    right, possible: functions of a text without its end. vocab_size: ids, the end among them. end:
    the id that ends a text.
    """

    right: Rule
    possible: Rule = lambda text: True
    vocab_size: int = 4
    end: int = 0

    @property
    def eos(self) -> frozenset[int]:  # type: ignore[override]
        return frozenset([self.end])

    def initial(self) -> State:
        return _RuleState(self, ())


class OddSum(TokenRule):
    """`odd_sum` over four tokens, of which 0 ends the text."""

    def __init__(self) -> None:
        super().__init__(odd_sum, may_get_odd)


@dataclass(frozen=True)
class _RuleState:
    rule: TokenRule
    text: tuple[int, ...]
    finished: bool = False

    @property
    def mask_cost(self) -> float:
        return float(self.rule.vocab_size)

    @property
    def complete(self) -> bool:
        return not self.finished and self.rule.right(self.text)

    def allows(self, token: int) -> bool:
        if token == self.rule.end:
            return self.complete
        known = not self.finished and 0 <= token < self.rule.vocab_size
        return known and self.rule.possible((*self.text, token))

    def mask(self) -> Tensor:
        return torch.tensor([self.allows(token) for token in range(self.rule.vocab_size)])

    def advance(self, token: int) -> State:
        if not self.allows(token):
            raise refuse(token, f"after {list(self.text)}")
        if token == self.rule.end:
            return _RuleState(self.rule, self.text, True)
        return _RuleState(self.rule, (*self.text, token))
