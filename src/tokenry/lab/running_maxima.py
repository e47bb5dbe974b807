"""A generator of running maxima that slips, its solutions, and value models that judge them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tokenry.core.batch import TokenBatch
from tokenry.decode.rollouts import rollouts
from tokenry.decode.search import stepwise_beam_search
from tokenry.lab.toy_training import fit_toy, seeded_modules, train_copy
from tokenry.learn.data.precompute import joined_batch
from tokenry.learn.rewards.token_value import TVM, TokenValueModel
from tokenry.tasks.worlds.running_maxima import (
    DIGITS,
    END,
    LENGTH,
    STEP,
    VALUES,
    VOCABULARY,
    is_correct,
    prompt,
    questions,
    solution,
)


class Solutions(NamedTuple):
    """Prompts, solutions and whether they are right, `copies` of each question in turn."""

    prompts: list[list[int]]
    solutions: list[list[int]]
    right: list[float]
    copies: int

    def by_question(self) -> list[tuple[list[list[int]], list[float]]]:
        """The solutions and outcomes of each question."""
        parts = [slice(n, n + self.copies) for n in range(0, len(self.right), self.copies)]
        return [(self.solutions[part], self.right[part]) for part in parts]


@dataclass(frozen=True)
class MaximaBench:
    """A generator fitted to solutions with slips, and its solutions of other questions.

    slip: of a fitted solution's step. fit_steps: of the generator. trained, tested: questions;
    copies, test_copies: solutions of each. steps: of a value model.
    """

    seed: int
    slip: float = 0.2
    fit_steps: int = 250
    trained: int = 200
    copies: int = 48
    tested: int = 200
    test_copies: int = 8
    steps: int = 200

    @cached_property
    def model(self) -> Any:
        def batches(draw: torch.Generator) -> TokenBatch:
            digits = torch.randint(VALUES, (64, DIGITS), generator=draw).tolist()
            solutions = [solution(question, self.slip, draw) for question in digits]
            return joined_batch([prompt(question) for question in digits], solutions)

        return fit_toy(
            batches, VOCABULARY, 2048, self.seed, data=self.slip, steps=self.fit_steps, decay=0.0
        )

    @cached_property
    def digits(self) -> list[list[int]]:
        return questions(torch.Generator().manual_seed(self.seed))[: self.trained + self.tested]

    @cached_property
    def training(self) -> Solutions:
        return self.sampled(self.digits[: self.trained], self.copies, self.seed)

    @cached_property
    def test(self) -> Solutions:
        return self.sampled(self.digits[self.trained :], self.test_copies, self.seed + 1)

    def sampled(self, digits: list[list[int]], copies: int, seed: int) -> Solutions:
        prompts = [prompt(question) for question in digits]
        drawn = rollouts(self.model, prompts, copies, max_new_tokens=LENGTH, seed=seed)
        rows = [
            (p, s, d) for p, d, texts in zip(prompts, digits, drawn, strict=True) for s in texts
        ]
        right = [float(is_correct(question, s)) for _, s, question in rows]
        return Solutions([p for p, *_ in rows], [s for _, s, _ in rows], right, copies)

    def value_model(self, targets: Sequence[Sequence[float]]) -> TokenValueModel:
        """The generator's trunk with a value head, taught these values of what stands before each
        token of the training solutions."""
        prompts, solutions, *_ = self.training
        value = torch.zeros(len(prompts), len(prompts[0]) + LENGTH)
        value[:, -LENGTH:] = torch.tensor(targets)
        whole = joined_batch(prompts, solutions).with_columns(value=value)
        head = seeded_modules(TVM(), self.model, self.seed)
        trunk, _ = train_copy(
            lambda draw: whole.select(torch.randint(len(prompts), (64,), generator=draw)),
            TVM(), self.model, modules=head, steps=self.steps, learning_rate=1e-3, clip=None,
            seed=self.seed,
        )  # fmt: skip
        return TokenValueModel(trunk, head).requires_grad_(False)

    @torch.no_grad()
    def judged(self, judge: TokenValueModel) -> tuple[Tensor, Tensor]:
        """Values after every token of the right and of the wrong test solutions, [n, LENGTH]."""
        batch = joined_batch(self.test.prompts, self.test.solutions)
        values = judge(batch.ids, batch.attention)[:, -LENGTH:]
        right = torch.tensor(self.test.right).bool()
        return values[right], values[~right]

    def searched(self, judge: TokenValueModel, count: int) -> float:
        """Accuracy of stepwise beam search under a value model on `count` test questions."""
        draw, scorer = torch.Generator().manual_seed(self.seed), judge.scorer(ends=[END])
        right = []
        for question in self.digits[self.trained :][:count]:
            best = stepwise_beam_search(
                self.model, prompt(question), scorer, step_end=lambda ids: ids[-1] == STEP,
                max_steps=DIGITS - 1, width=2, candidates=8, max_step_tokens=2, ends=[END],
                seed=draw,
            ).best  # fmt: skip
            right.append(float(is_correct(question, best)))
        return fmean(right)
