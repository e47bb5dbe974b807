"""Models of string tasks with a long tail, and their greedy answers with and without markers."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from tokenry.lab.toy_model import toy_model
from tokenry.lab.toy_training import from_rows, sample_on, train_on
from tokenry.tasks.worlds import string_tasks
from tokenry.tasks.worlds.string_tasks import FREQUENCIES
from tokenry.text.markers import MarkerSchema


@dataclass(frozen=True)
class Answers:
    """Of each test, [N] bool: the right text; a wrong length; the task's marker written rightly."""

    right: Tensor
    wrong_length: Tensor
    marker: Tensor


@dataclass(frozen=True)
class StringBench:
    """Rows of the tasks by their frequencies, and equally many tests of each task.

    rows: of training. per_task: tests. steps, batch_size, learning_rate: of a training.
    """

    seed: int
    rows: int = 8000
    per_task: int = 100
    steps: int = 450
    batch_size: int = 48
    learning_rate: float = 3e-3

    @cached_property
    def tokenizer(self) -> Any:
        return string_tasks.tokenizer()

    @cached_property
    def data(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Rows and tests, with their ids."""
        draw = random.Random(self.seed)
        tasks = draw.choices(list(FREQUENCIES), list(FREQUENCIES.values()), k=self.rows)
        tests = [task for task in FREQUENCIES for _ in range(self.per_task)]
        made = [string_tasks.example(task, draw) for task in (*tasks, *tests)]
        for row in made:
            row["prompt_ids"] = self.tokenizer(row["prompt"])["input_ids"]
            row["chosen_ids"] = [*self.tokenizer(row["chosen"])["input_ids"], 0]
        return made[: self.rows], made[self.rows :]

    @cached_property
    def schema(self) -> MarkerSchema:
        return MarkerSchema.of_data(row["markers"] for row in self.data[0])

    def train(self, objective: Any, markers: bool = True) -> Any:
        """A model trained on the rows, or on the same without their markers."""
        rows = self.data[0] if markers else [{**row, "markers": None} for row in self.data[0]]
        context = SimpleNamespace(tokenizer=self.tokenizer, seed=self.seed)
        batches = from_rows(objective, objective.precompute(rows, context), self.batch_size)
        start = toy_model(len(self.tokenizer), 40, self.seed)
        return train_on(
            batches, objective, start, steps=self.steps, learning_rate=self.learning_rate,
            decay=0.5, seed=self.seed,
        )  # fmt: skip

    def answers(self, model: Any, *, fixed: bool = False) -> Answers:
        """Greedy answers to the tests; fixed shows the true markers behind the prompt."""
        tests, prompts = self.data[1], []
        for row in tests:
            shown = self.schema.render(row["markers"]) if fixed else ""
            prompts.append([*row["prompt_ids"], *self.tokenizer(shown)["input_ids"]])
        ids = sample_on(model, torch.tensor(prompts), 16, torch.Generator(), end=0, greedy=True)
        judged = []
        for row, text in zip(tests, self.tokenizer.batch_decode(ids, True), strict=True):
            written, _, answer = text.rpartition("]")
            given, wanted = answer.split(), row["chosen"].split()
            marked = f"task : {row['markers']['task']}" in written
            judged.append((given == wanted, len(given) != len(wanted), marked))
        return Answers(*torch.tensor(judged).T)
