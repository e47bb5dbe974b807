"""Running maxima: a question lists five digits, its solution the largest so far at each step.

    3 , 5 , 0 , 7 , 1 =      solution   5 ; 5 ; 7 ; 7 .

A slip writes a random digit, from which the solution goes on. Only the last digit is the answer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

VALUES, DIGITS = 8, 5
COMMA, EQUALS, STEP, END = range(VALUES, VALUES + 4)
VOCABULARY = END + 1
LENGTH = 2 * (DIGITS - 1)  # of a solution: a digit and a delimiter for each step


def questions(generator: torch.Generator) -> list[list[int]]:
    """The digits of all questions, shuffled."""
    order = torch.randperm(VALUES**DIGITS, generator=generator)
    return torch.cartesian_prod(*[torch.arange(VALUES)] * DIGITS)[order].tolist()


def prompt(digits: Sequence[int]) -> list[int]:
    """d , d , ... , d =, two tokens a digit as the solution has two a step."""
    return [*[token for digit in digits for token in (digit, COMMA)][:-1], EQUALS]


def solution(digits: Sequence[int], slip: float, generator: torch.Generator) -> list[int]:
    """Every running maximum with its delimiter; each is a random digit with probability `slip`."""
    ids, largest = [], digits[0]
    chances = torch.rand(len(digits), generator=generator).tolist()
    for digit, chance in zip(digits[1:], chances, strict=False):
        largest = max(largest, digit)
        if chance < slip:
            largest = int(torch.randint(VALUES, (1,), generator=generator))
        ids += [largest, STEP]
    return [*ids[:-1], END]


def is_correct(digits: Sequence[int], completion: Sequence[int]) -> bool:
    """Whether the digit before the end is the largest."""
    return len(completion) >= 2 and completion[-2] == max(digits)
