"""Sums with signs: the smallest that is not negative (MNNS), its traces and what they teach.

    answer(d_1 .. d_m) = min { s_1 d_1 + ... + s_m d_m >= 0 :  s_i in {-1, +1} }
    trace of signs s     p_t = s_1 d_1 + ... + s_t d_t,  t = 1 .. m
    target of step t < m alpha_t(v) = (1/B) |{ chosen traces with p_t = v }|

The traces chosen are all 2^m, or the B best: those whose final sum is smallest without being
negative, or smallest in size. alpha_1 .. alpha_{m-1} are what a continuous chain of thought is
taught, the answer is its last, discrete step; with B = 1 they are one trace, ordinary chain of
thought.

Source: Continuous Chain of Thought Enables Parallel Exploration and Reasoning (arXiv 2505.23648).
Ours: the order among traces of equal final sums (minus before plus, the first digit first), and
among sums of equal size (the one that is not negative first); the rule of the split, by a checksum
of the sorted digits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate, product
from typing import Literal, get_args
from zlib import crc32

import torch
from torch import Tensor

from tokenry.core.checks import in_range, one_of
from tokenry.core.errors import InputError

Order = Literal["non-negative", "absolute"]
Part = Literal["train", "test"]
TEST_SHARE = 5  # one multiset of digits in five is for testing


def traces(
    digits: Sequence[int], budget: int | None = None, order: Order = "non-negative"
) -> list[tuple[int, ...]]:
    """The partial sums of the chosen signs, B times m of them.

    Args:
        digits: whole numbers, m >= 1.
        budget: B in [1, 2^m], or None (default) for all 2^m, in the order of their signs.
        order: the best are those of smallest final sum >= 0 ("non-negative", default; then the
            negative ones, nearest to 0 first), or of smallest |final sum| ("absolute").
    """
    in_range("budget", budget, f"[1, {2 ** len(digits)}]", integer=True, optional=True)
    one_of("order", order, get_args(Order))
    signs = product((-1, 1), repeat=len(digits))
    found = [tuple(accumulate(s * d for s, d in zip(row, digits, strict=True))) for row in signs]
    if budget is None:
        return found

    def rank(trace: tuple[int, ...]) -> tuple[int, int]:
        negative = int(trace[-1] < 0)
        return (negative, abs(trace[-1])) if order == "non-negative" else (abs(trace[-1]), negative)

    return sorted(found, key=rank)[:budget]


def signed_sums(digits: Sequence[int]) -> set[int]:
    """All sums that some signs give."""
    sums = {0}
    for digit in digits:
        sums = {value + sign * digit for value in sums for sign in (-1, 1)}
    return sums


def smallest_sum(digits: Sequence[int]) -> int:
    """The smallest sum with signs that is not negative."""
    return min(value for value in signed_sums(digits) if value >= 0)


def step_targets(
    digits: Sequence[int],
    budget: int | None = None,
    order: Order = "non-negative",
    largest: int = 9,
) -> Tensor:
    """alpha_1 .. alpha_{m-1}, [m - 1, 2 * m * largest + 1]; column j is the sum j - m * largest."""
    chosen, bound = traces(digits, budget, order), len(digits) * largest
    if max(map(abs, digits)) > largest:
        raise InputError(f"digits {list(digits)} go beyond the largest, {largest}")
    targets = torch.zeros(len(digits) - 1, 2 * bound + 1)
    for step in range(len(digits) - 1):
        for value, times in Counter(trace[step] for trace in chosen).items():
            targets[step, value + bound] = times / len(chosen)
    return targets


def part_of(digits: Sequence[int]) -> Part:
    """ "train" or "test": the same for every permutation of the digits."""
    return "train" if crc32(repr(sorted(digits)).encode()) % TEST_SHARE else "test"
