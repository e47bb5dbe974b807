"""Continuous chains of thought on signed sums: how they are taught and judged.

Digits behind each other ask for the smallest sum with signs that is not negative
(`tasks.worlds.signed_sums`); every partial sum is one token.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import torch
from torch import Tensor

from tokenry.core.batch import TokenBatch
from tokenry.decode.continuous import Mode, continuous_generate
from tokenry.lab.toy_model import toy_model
from tokenry.lab.toy_training import train_on
from tokenry.learn.pretraining.csft import CSFT, traced_batch
from tokenry.tasks.worlds.signed_sums import part_of, smallest_sum, traces

DIGITS, LARGEST = 3, 9
ASK, FIRST = 10, 11 + DIGITS * LARGEST  # behind the digits; the id of the sum 0
VOCABULARY = FIRST + DIGITS * LARGEST + 1


@dataclass(frozen=True)
class Sums:
    """Digits to learn from ("train") or to be judged by ("test")."""

    part: str

    @cached_property
    def digits(self) -> list[tuple[int, ...]]:
        every = product(range(1, LARGEST + 1), repeat=DIGITS)
        return [digits for digits in every if part_of(digits) == self.part]

    @cached_property
    def prompts(self) -> Tensor:
        return torch.tensor([[*digits, ASK] for digits in self.digits])

    def answers(self, prompts: Tensor) -> Tensor:
        """The ids of the smallest sums."""
        return torch.tensor([FIRST + smallest_sum(row[:DIGITS]) for row in prompts.tolist()])

    def given(self, budget: int | None) -> TokenBatch:
        """Prompts with the traces of a budget, None for no thoughts, and the answers."""
        chosen = [traces(digits, budget or 1) for digits in self.digits]
        answers = self.answers(self.prompts)[:, None]
        thoughts = [[[FIRST + v for v in t[: -1 if budget else 0]] for t in own] for own in chosen]
        return traced_batch(self.prompts.tolist(), thoughts, answers.tolist())


TRAIN, TEST = Sums("train"), Sums("test")


def accuracy(
    model: Any, steps: int, mode: Mode = "mean", tokens: int = 1, seed: int = 0
) -> tuple[float, float]:
    """The share of right answers to the test's digits after so many thoughts, and the entropy of a
    thought in nats (0 without any)."""
    draw = torch.Generator().manual_seed(seed)
    alpha, answers = continuous_generate(
        model, TEST.prompts, steps, mode, tokens=tokens, generator=draw
    )
    right = torch.tensor(answers)[:, 0] == TEST.answers(TEST.prompts)
    entropy = torch.special.entr(alpha).sum(-1)
    return float(right.float().mean()), float(entropy.mean()) if steps else 0.0


def taught(budget: int | None, width: int, steps: int, seed: int) -> Any:
    """A transformer that was taught traces of a budget, None for answers alone."""
    rows = TRAIN.given(budget)

    def batches(draw: torch.Generator) -> TokenBatch:
        return rows.select(torch.randint(len(rows.ids), (128,), generator=draw))

    model, rate = toy_model(VOCABULARY, 16, seed, width=width), 3e-3
    return train_on(batches, CSFT(), model, steps=steps, learning_rate=rate, seed=seed, decay=0.5)
