"""Branches: several models, or several prompts, that go on with the same text, kept in step.

Contrasting a prompt with another, averaging models, asking a big model now and then: each keeps
more than one text and its cache in step. A branch is *lazy*: tokens that are appended wait, and are
read, all in one forward pass, when the branch's logits are asked for. A branch that is never asked
costs nothing; one that is asked always is read token by token. Either way its logits are the same.

    branches = Branches([Branch(model, ids), Branch(model, other_ids), Branch(big, big_ids)])
    z = branches[0].logits                    # [B, V]; the others have read nothing yet
    branches.append(token)                    # [B]: all of them go on with it
    branches.append([token, token, pieces])   # or each with its own tokens ([B] or [B, n])
    branches[1].logits                        # reads its prompt and the tokens in one pass

Prompts of one model that are always needed together belong in one branch, as rows of a batch that
is padded on the left (`TokenBatch.from_ids`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from tokenry.core.errors import InputError, ShapeError
from tokenry.model.decoding import DecodingState


@dataclass
class Branch:
    """One model and B growing texts, changed in place by its methods.

    Args:
        ids: [B, T], T >= 1, padded on the left.
        attention: [B, T], False on padding; None: no padding.
        passes: forward passes so far, and the columns that they read.
        tokens_read: forward passes so far, and the columns that they read.
    """

    model: Any
    ids: Tensor
    attention: Tensor | None = None
    passes: int = 0
    tokens_read: int = 0
    _state: DecodingState | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.ids.ndim != 2 or not self.ids.shape[1]:
            raise ShapeError(f"ids must be [B, T] with T >= 1, got {list(self.ids.shape)}")
        real = torch.ones_like(self.ids) if self.attention is None else self.attention
        if real.shape != self.ids.shape:
            raise ShapeError(f"attention must be {list(self.ids.shape)}, got {list(real.shape)}")
        self.attention = real.bool()
        self._prompt = self.ids.shape[1]

    @property
    def rows(self) -> int:
        return self.ids.shape[0]

    @property
    def appended(self) -> int:
        """How many tokens each text has been given since the prompt."""
        return self.ids.shape[1] - self._prompt

    @property
    def waiting(self) -> int:
        """How many columns have not been read."""
        return self.ids.shape[1] - (0 if self._state is None else self._state.length)

    @property
    def logits(self) -> Tensor:
        """[B, V] float32, for the next token; reads what is waiting, in one forward pass."""
        count = self.waiting
        if self._state is not None and not count and self._state.next_logits is None:
            count = self._unread_last()  # after a rollback: the last token is read again
        if count:
            self.passes, self.tokens_read = self.passes + 1, self.tokens_read + count
        if self._state is None:
            self._state = DecodingState.start(self.model, self.ids, self.attention)
        elif count:
            self._state.append(self.ids[:, -count:])
        return self._state.logits

    def append(self, tokens: Tensor) -> None:
        """Go on with `tokens` [B] or [B, n]; n may be 0."""
        many = tokens[:, None] if tokens.ndim == 1 else tokens
        if many.ndim != 2 or many.shape[0] != self.rows:
            raise ShapeError(
                f"tokens must be [{self.rows}] or [{self.rows}, n], got {list(tokens.shape)}"
            )
        assert self.attention is not None
        self.ids = torch.cat([self.ids, many.to(self.ids)], 1)
        self.attention = pad(self.attention, (0, many.shape[1]), value=True)

    def rollback(self, count: int) -> None:
        """Take back the last `count` tokens of every text; a prompt stays whole."""
        if not 0 <= count <= self.appended:
            raise InputError(f"cannot take back {count} of {self.appended} appended tokens")
        if not count:
            return
        read_too = count - self.waiting
        assert self.attention is not None
        self.ids, self.attention = self.ids[:, :-count], self.attention[:, :-count]
        if self._state is not None and read_too > 0:
            self._state.crop(read_too)

    def select(self, index: Tensor) -> None:
        """Keep these rows in this order; a row may be repeated, which forks it."""
        index = torch.as_tensor(index, dtype=torch.long, device=self.ids.device)
        assert self.attention is not None
        self.ids, self.attention = self.ids[index], self.attention[index]
        if self._state is not None:
            self._state.select(index)

    def copy(self) -> Branch:
        """An independent branch at the same place."""
        twin = replace(self, _state=None if self._state is None else self._state.copy())
        twin._prompt = self._prompt
        return twin

    def _unread_last(self) -> int:
        assert self._state is not None
        if self._state.length == 1:
            self._state = None
        else:
            self._state.crop(1)
        return 1


class Branches:
    """A sequence of branches with one number of rows."""

    def __init__(self, branches: Sequence[Branch]):
        self.branches = list(branches)
        rows = {branch.rows for branch in self.branches}
        if len(rows) != 1:
            raise ShapeError(f"branches must have one number of rows, got {sorted(rows)}")

    def __len__(self) -> int:
        return len(self.branches)

    def __getitem__(self, number: int) -> Branch:
        return self.branches[number]

    def __iter__(self) -> Iterator[Branch]:
        return iter(self.branches)

    @property
    def rows(self) -> int:
        return self.branches[0].rows

    @property
    def passes(self) -> int:
        """Forward passes of all branches."""
        return sum(branch.passes for branch in self.branches)

    def append(self, tokens: Tensor | Sequence[Tensor]) -> None:
        """Go on with one [B] or [B, n] for all branches, or with one for each of them."""
        for branch, own in zip(self.branches, self._each(tokens), strict=True):
            branch.append(own)

    def rollback(self, count: int | Sequence[int]) -> None:
        """Take back tokens, as many of every branch or a count for each."""
        counts = [count] * len(self) if isinstance(count, int) else list(count)
        if len(counts) != len(self):
            raise ShapeError(f"{len(counts)} counts for {len(self)} branches")
        for branch, own in zip(self.branches, counts, strict=True):
            branch.rollback(own)

    def select(self, index: Tensor) -> None:
        """Keep these rows of every branch, in this order."""
        for branch in self.branches:
            branch.select(index)

    def fork(self, copies: int) -> None:
        """Repeat every row `copies` times, copies side by side."""
        self.select(torch.arange(self.rows).repeat_interleave(copies))

    def copy(self) -> Branches:
        """Independent branches at the same place."""
        return Branches([branch.copy() for branch in self.branches])

    def _each(self, tokens: Tensor | Sequence[Tensor]) -> list[Tensor]:
        if isinstance(tokens, Tensor):
            return [tokens] * len(self)
        if len(tokens) != len(self):
            raise ShapeError(f"tokens for {len(tokens)} branches, but there are {len(self)}")
        return list(tokens)
