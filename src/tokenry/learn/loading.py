"""Which rows each process reads, exactly: every row once an epoch, and no process without a batch.

A step of P processes with a micro-batches of b rows each takes a P b rows of the sampler's order.
When the last step has fewer, some process may have no row left for a micro-batch. It must take part
all the same (gradients are synchronised), so it reads a *stand-in*: a row of the same step that
counts nothing. (accelerate repeats rows from the epoch's beginning instead, at full weight.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence, Sized
from typing import Any, cast

import torch
from torch.utils.data import BatchSampler, RandomSampler, Sampler, SequentialSampler

STAND_IN = "stand_in"


class ProcessBatches(BatchSampler):
    """The micro-batches of one process, as lists of row numbers; `~row` is a stand-in for a row.

    sampler: the order of all rows, the same in every process. batch_size: rows of a micro-batch.
    accumulate: micro-batches of an optimizer step. repeats: how often each step's micro-batches
    come, one round after the other; then every step has all its micro-batches, stand-ins if need
    be. drop_last: leave out the last rows that do not fill a micro-batch of every process.
    """

    def __init__(
        self,
        sampler: Sampler[int],
        batch_size: int,
        *,
        accumulate: int = 1,
        processes: int = 1,
        process: int = 0,
        repeats: int = 1,
        drop_last: bool = False,
    ):
        self.sampler, self.batch_size, self.drop_last = sampler, batch_size, drop_last
        self.accumulate, self.repeats = accumulate, repeats
        self.processes, self.process = processes, process

    def __iter__(self) -> Iterator[list[int]]:
        rows = self._order()
        rows = rows[: self._used(len(rows))]
        together = self.batch_size * self.processes
        for start in range(0, len(rows), together * self.accumulate):
            step = rows[start : start + together * self.accumulate]
            own = []
            for micro in range(self._micro_batches(len(step))):
                first = (micro * self.processes + self.process) * self.batch_size
                own.append(step[first : first + self.batch_size] or [~step[0]])
            for _ in range(self.repeats):
                yield from own

    def __len__(self) -> int:
        steps, rest = divmod(
            self._used(len(cast(Sized, self.sampler))),
            self.batch_size * self.processes * self.accumulate,
        )
        return self.repeats * (steps * self.accumulate + self._micro_batches(rest))

    def set_epoch(self, epoch: int) -> None:
        set_epoch = getattr(self.sampler, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(epoch)

    def smallest_step(self) -> int:
        """Rows of the smallest micro-batch that is no stand-in, of the first process."""
        used = self._used(len(cast(Sized, self.sampler)))
        rest = used % (self.batch_size * self.processes * self.accumulate)
        return min(self.batch_size, rest or self.batch_size)

    def _used(self, rows: int) -> int:
        return rows - rows % (self.batch_size * self.processes) if self.drop_last else rows

    def _micro_batches(self, rows: int) -> int:
        """Of a step with so many rows."""
        if rows and self.repeats > 1:
            return self.accumulate
        return math.ceil(rows / (self.batch_size * self.processes))

    def _order(self) -> list[int]:
        order = list(self.sampler)
        if self.processes > 1 and not isinstance(self.sampler, SequentialSampler):
            from accelerate.utils import broadcast_object_list

            order = broadcast_object_list([order])[0]
        return order


class Rows:
    """A dataset whose items are (row, whether it counts); number `~n` is row n as a stand-in."""

    def __init__(self, data: Any):
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, number: int) -> tuple[Any, bool]:
        return (self.data[number], True) if number >= 0 else (self.data[~number], False)


class CollateCounted:
    """The collator's fields of the rows, with `STAND_IN` when none of them counts."""

    def __init__(self, collate: Callable[[list[Any]], dict[str, Any]]):
        self.collate = collate

    def __call__(self, items: Sequence[tuple[Any, bool]]) -> dict[str, Any]:
        fields = self.collate([row for row, _ in items])
        if not any(counts for _, counts in items):
            rows = len(next(iter(fields.values())))
            fields[STAND_IN] = torch.ones(rows, dtype=torch.bool)
        return fields


def same_everywhere(sampler: Sampler[int], data_seed: int | None) -> Sampler[int]:
    """A random sampler with an order that is decided by the seed and the epoch alone."""
    if type(sampler) is not RandomSampler:
        return sampler
    from accelerate.data_loader import SeedableRandomSampler

    return SeedableRandomSampler(
        data_source=sampler.data_source,
        replacement=sampler.replacement,
        num_samples=sampler._num_samples,
        generator=sampler.generator,
        data_seed=data_seed,
    )
