"""Ending: a model that stops as soon as its text satisfies the constraint.

A constraint says where a text may end, not that it does: a song whose lines are full can go on with
commas, and a model that would not end there gives the end a small probability, which counts in the
weight of the text. Where the constraint is meant to say when the text is done, the model to sample
from is

    p'(end | y) = 1   if y satisfies the constraint,      p'(. | y) = p(. | y)   otherwise,

and this logits processor makes it of any model. It belongs into the generation's processors:

    ending = Ending(song, prompt_ids)
    generate(loaded, prompt_ids, song, processors=[ending])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tokenry.decode.constraints.base import Constraint, State
from tokenry.decode.steering.base import Example, controller

REMEMBERED = 4096  # texts whose states are kept


@controller("ending", examples=lambda: _examples())
class Ending:
    """Gives the end (the smallest of the constraint's `eos`) probability one after texts that are
    complete.

    Args:
        prompt_ids: what the texts go on from.
    """

    def __init__(self, constraint: Constraint, prompt_ids: Sequence[int]):
        self.start = len(prompt_ids)
        self.end = min(constraint.eos)
        self._first = constraint.begin(prompt_ids)
        self._states: dict[tuple[int, ...], State | None] = {}

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Logits `[B, V]` after `input_ids` `[B, T]`."""
        states = [self._state(tuple(row)) for row in input_ids[:, self.start :].tolist()]
        done = torch.tensor([state is not None and state.complete for state in states])
        only_end = torch.full_like(scores[0], float("-inf"))
        only_end[self.end] = 0.0
        return torch.where(done.to(scores.device)[:, None], only_end, scores)

    def _state(self, text: tuple[int, ...]) -> State | None:
        """Where a text leads; None if the constraint refuses it."""
        if not text:
            return self._first
        if text not in self._states:
            before = self._state(text[:-1])
            allowed = before is not None and before.allows(text[-1])
            if len(self._states) >= REMEMBERED:
                self._states.clear()
            self._states[text] = before.advance(text[-1]) if before and allowed else None
        return self._states[text]


def _examples() -> list[Example]:
    from tokenry.decode.constraints.length import Length

    def after(tokenizer: Any, length: int, minimum: int) -> Ending:
        return Ending(Length(minimum, None, tokenizer), [0] * length)

    return [Example(lambda t, n, _: after(t, n, 2), lambda t, n, _: after(t, n, 99))]
