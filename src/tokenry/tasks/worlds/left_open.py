"""Left open: what a description does not say, examples do, and a reader with a habit reads both.

A text is a description, some noisy examples x y, and a question x. The answer is x + s mod 11, and
the description leaves two shifts open, R and R + 4, of which the first is the usual one, nine of
ten. An example shows the shift with probability 1 - NOISE, else any. A reader's posterior of the
unusual shift is

    P(unusual | examples) = sigmoid( sum log P(example | unusual) / P(example | usual) + log 1/9 )

which, without the examples, is the habit alone. On the questions both shifts are as frequent, so
that the habit misleads. Answers are written as differences to x + R: the usual one is 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

NUMBERS, OFFSET = 11, 4
USUAL, NOISE, MOST_EXAMPLES = 0.9, 0.6, 6
FLOOR, LOGIT_NOISE = 0.002, 0.3  # probability of each wrong answer; standard deviation


@dataclass(frozen=True)
class OpenQuestions:
    """with_examples, without: a noisy reader's logits, [N, 11] float64. answer: [N]."""

    with_examples: Tensor
    without: Tensor
    answer: Tensor


def open_questions(count: int, seed: int) -> OpenQuestions:
    """So many questions with one to six examples, the same for the same seed and count."""
    generator = torch.Generator().manual_seed(seed)
    options: Any = {"generator": generator, "dtype": torch.float64}
    examples = torch.randint(1, MOST_EXAMPLES + 1, (count,), generator=generator)
    unusual = torch.rand(count, **options) < 0.5
    shown = torch.arange(MOST_EXAMPLES) < examples[:, None]
    noisy = torch.rand(count, MOST_EXAMPLES, **options) < NOISE
    accident = torch.randint(NUMBERS, noisy.shape, generator=generator)
    # what each example shows, as a difference to the usual shift
    shift = torch.where(noisy, accident, OFFSET * unusual[:, None])
    odds = log_odds(shift, shown)
    with_examples, without = (
        answer_logits(posterior) + LOGIT_NOISE * torch.randn(count, NUMBERS, **options)
        for posterior in (odds.sigmoid(), torch.full_like(odds, 1 - USUAL))
    )
    return OpenQuestions(with_examples, without, OFFSET * unusual)


def log_odds(shift: Tensor, shown: Tensor) -> Tensor:
    """log P(unusual) / P(usual), [N], behind the examples [N, E] that are `shown` (bool)."""
    right, wrong = 1 - NOISE + NOISE / NUMBERS, NOISE / NUMBERS
    usual, unusual = (
        (torch.where(shift == candidate, math.log(right), math.log(wrong)) * shown).sum(1)
        for candidate in (0, OFFSET)
    )
    return unusual - usual + math.log(1 / USUAL - 1)


def answer_logits(unusual: Tensor) -> Tensor:
    """log P of the answers, [N, 11], given the probability [N] of the unusual shift."""
    probs = torch.full((len(unusual), NUMBERS), FLOOR, dtype=torch.float64)
    left = 1 - NUMBERS * FLOOR
    probs[:, 0] += left * (1 - unusual)
    probs[:, OFFSET] += left * unusual
    return probs.log()
