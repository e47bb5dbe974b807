"""A task's items as training rows, in TRL's formats, and its scores as a reward function of them.

    prompt_rows(task, count, seed)          {"prompt", "answer", "item"}      policy training
    demonstration_rows(task, count, seed)   {"prompt", "completion"}          supervised training
    TaskReward(task)(prompts=, completions=, item=) -> [r_1 .. r_n]           r = task.reward

`item` is JSON text with what the scoring needs, so that rows pass through JSONL files and tables
unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from tokenry.core.checks import in_range
from tokenry.core.errors import InputError
from tokenry.tasks.task import Generate, Item, Task

Row = dict[str, Any]


def prompt_rows(task: Task, count: int, seed: int = 0) -> list[Row]:
    """Rows to answer and be rewarded for.

    Args:
        task: one whose items ask for texts.
        count: rows, >= 1. seed: of the items.

    Returns:
        Rows with `prompt` (a text, or messages), `answer` (a right one, or None) and `item`.

    Raises:
        InputError: an item that asks for log-likelihoods, or whose `about` is not JSON.
    """
    return [_row(item) for item in _items(task, count, seed)]


def demonstration_rows(task: Task, count: int, seed: int = 0) -> list[Row]:
    """Rows with a `prompt` and its solution as `completion`, for training by likelihood.

    A prompt of messages gets a message as its completion. Arguments and errors are those of
    `prompt_rows`; an item without a known solution is refused too.
    """
    rows = []
    for item in _items(task, count, seed):
        if not isinstance(item.solution, str):
            raise InputError(f"{type(task).__name__} has an item without a solution to learn from")
        chat = not isinstance(item.request.prompt, str)
        message = [{"role": "assistant", "content": item.solution}]
        rows.append({"prompt": _prompt(item), "completion": message if chat else item.solution})
    return rows


@dataclass(frozen=True)
class TaskReward:
    """A reward function with TRL's signature for the rows of `prompt_rows`:
    (prompts, completions, item, ...) -> one reward for each completion. It can be sent to another
    process, and a completion of messages is the text of its last one.

    Args:
        task: the one that made the rows.
        after: the answer is what follows the last of these texts in a completion, as "####" after
            steps of thought; a completion without it is scored as an empty answer. None (default)
            scores the whole completion.

    Raises:
        InputError: when called without the column `item`, or with a different number of each.
    """

    task: Task
    after: str | None = None

    required_columns: ClassVar[tuple[str, ...]] = ("item",)

    @property
    def __name__(self) -> str:
        """What trainers log it as."""
        return f"{type(self.task).__name__}_reward"

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], item: Sequence[str] = (), **_: Any
    ) -> list[float]:
        if not len(prompts) == len(completions) == len(item):
            raise InputError(
                f"{len(prompts)} prompts, {len(completions)} completions and {len(item)} items: "
                "a task's reward needs the column `item` of its rows, one for each completion"
            )
        rows = zip(prompts, completions, item, strict=True)
        return [
            self.task.reward(_item(prompt, told), self._answer(completion))
            for prompt, completion, told in rows
        ]

    def _answer(self, completion: Any) -> str:
        text = completion if isinstance(completion, str) else completion[-1]["content"]
        if self.after is None:
            return text
        _, marker, answer = text.rpartition(self.after)
        return answer if marker else ""


def _items(task: Task, count: int, seed: int) -> list[Item]:
    in_range("count", count, "[1, inf)", integer=True)
    items = list(task.items(count, seed))
    if not all(isinstance(item.request, Generate) for item in items):
        raise InputError(
            f"{type(task).__name__} asks for log-likelihoods: nothing is to be written"
        )
    return items


def _prompt(item: Item) -> Any:
    prompt = item.request.prompt
    return prompt if isinstance(prompt, str) else [dict(message) for message in prompt]


def _row(item: Item) -> Row:
    request = item.request
    assert isinstance(request, Generate)
    parts = {"limit": request.limit, "stop": request.stop, "solution": item.solution}
    try:
        told = json.dumps({**parts, "about": dict(item.about)}, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"what this item is scored by cannot be written as JSON: {error}"
        ) from None
    return {"prompt": _prompt(item), "answer": item.solution, "item": told}


def _item(prompt: Any, told: str) -> Item:
    parts = json.loads(told)
    request = Generate(prompt, parts["limit"], tuple(parts["stop"]))
    return Item(request, parts["solution"], parts["about"])
