"""Replay: the newest rows of several columns, to be drawn from evenly."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tokenry.core.checks import in_range
from tokenry.core.errors import InputError, ShapeError


class Replay:
    """At most `capacity` >= 1 rows; when it is full, a new row takes the place of the oldest."""

    def __init__(self, capacity: int):
        in_range("capacity", capacity, "[1, inf)", integer=True)
        self.capacity = capacity
        self.added = 0
        self._columns: list[Tensor] = []

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def add(self, columns: Sequence[Tensor]) -> None:
        """Rows [n, ...] of each column, the same columns every time; n may be 0."""
        sizes = {len(column) for column in columns}
        if len(sizes) != 1:
            raise ShapeError(f"columns must have one number of rows, got {sorted(sizes)}")
        if not self._columns:
            self._columns = [c.new_zeros(self.capacity, *c.shape[1:]) for c in columns]
        count = sizes.pop()
        kept = min(count, self.capacity)
        places = torch.arange(self.added + count - kept, self.added + count) % self.capacity
        for own, new in zip(self._columns, columns, strict=True):
            own[places] = new[count - kept :]
        self.added += count

    def draw(self, count: int, generator: torch.Generator) -> list[Tensor]:
        """`count` rows of each column, with replacement. InputError where there is none."""
        if not len(self):
            raise InputError("there is nothing in the replay to draw from")
        rows = torch.randint(len(self), (count,), generator=generator)
        return [column[rows] for column in self._columns]
