"""Distinct items: questions drawn until there are enough, no question twice, and parts of them.

Items of two seeds may meet; training and test items that never do are parts of one draw (`split`),
or those of a seed and what follows them (`HeldOut`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from tokenry.core.checks import in_range, within
from tokenry.core.errors import InputError
from tokenry.tasks.task import Answer, Item, Scores, Task


def distinct_items(draw: Callable[[Random], Item], count: int, seed: int) -> list[Item]:
    """`count` items with different requests, the same for the same seed.

    Args:
        draw: makes one item, with no other source of chance than the generator that it is given.
        count: items, >= 0.
        seed: of the generator.

    Raises:
        InputError: 100 + 20 * count draws in a row brought nothing new. Of `count` equally likely
            questions the last one is missed by that many draws with probability below exp(-20).
    """
    in_range("count", count, "[0, inf)", integer=True)
    random, items, known, repeats = Random(seed), [], set(), 0
    while len(items) < count:
        item = draw(random)
        request = repr(item.request)
        if request not in known:
            known.add(request)
            items.append(item)
            repeats = 0
            continue
        repeats += 1
        if repeats > 100 + 20 * count:
            raise InputError(
                f"{count} distinct items were asked for and {len(items)} were drawn: these "
                "settings have no more, or hardly any; ask for fewer or widen the settings"
            )
    return items


def split(task: Task, sizes: Sequence[int], seed: int = 0) -> list[list[Item]]:
    """Items in parts of these sizes, with no request in two of them.

    Raises:
        InputError: a size below 1, or a task that draws a request twice.
    """
    for size in sizes:
        in_range("a size", size, "[1, inf)", integer=True)
    items = list(task.items(sum(sizes), seed))
    if len({repr(item.request) for item in items}) < len(items):
        raise InputError(f"{type(task).__name__} draws some items twice: they cannot be split")
    ends = [sum(sizes[: n + 1]) for n in range(len(sizes))]
    return [items[end - size : end] for size, end in zip(sizes, ends, strict=True)]


@dataclass(frozen=True)
class HeldOut(Task):
    """A task without the items that a model was trained on: those behind the first of a seed.

        items(count, seed) = task.items(after + count, seed) without the first `after`

    Args:
        task: scores the answers.
        after: items of the same seed that training had, >= 1.

    Raises:
        InputError: `after` out of range; when items are asked for, a task whose first items depend
            on how many there are, or that draws one of them again.
    """

    task: Task
    after: int

    def __post_init__(self) -> None:
        within(self, "[1, inf)", "after", integer=True)

    @property
    def primary(self) -> str:  # type: ignore[override]
        return self.task.primary

    def items(self, count: int, seed: int) -> list[Item]:
        """The same seed as in training."""
        items = list(self.task.items(self.after + count, seed))
        requests = [repr(item.request) for item in items]
        trained = [repr(item.request) for item in self.task.items(self.after, seed)]
        if requests[: self.after] != trained or {*trained} & {*requests[self.after :]}:
            raise InputError(
                f"the items of {type(self.task).__name__} behind the first {self.after} are not "
                "apart from them: split one draw into parts"
            )
        return items[self.after :]

    def score(self, item: Item, answer: Answer) -> Scores:
        return self.task.score(item, answer)

    def aggregate(self, scores: Sequence[Scores]) -> Scores:
        return self.task.aggregate(scores)

    def reward(self, item: Item, answer: Answer) -> float:
        return self.task.reward(item, answer)
