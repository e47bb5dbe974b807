"""Monotone block alignment: two sequences cut into matching blocks, by dynamic programming.

Given a score C[i, j] of every row i = 1..M with every column j = 1..W (how much note i attends to
word j), the best way to cover both, from left to right, with blocks of several rows on one column
or of one row on several columns:

    f(0, 0) = 0,    f(i, j) = max of
        f(i - r, j - 1) + mean_{i-r < i' <= i} C[i', j] - λ r / M      r rows, one column
        f(i - 1, j - r) + mean_{j-r < j' <= j} C[i, j'] - λ r / W      one row, r columns

A block counts with the mean of its scores; λ >= 0 makes long ones dearer. O(M W (M + W)); the rows
are a loop, the rest is arrays.

Source: SongMASS: Automatic Song Writing with Pre-training and Alignment Constraint (arXiv
2012.05168), section 3.4. λ is 0 in the paper and 1 in the released code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tokenry.core.errors import InputError, ShapeError

Block = tuple[range, range]
Pair = tuple[int, int]


def monotone_block_alignment(
    scores: Any, *, length_penalty: float = 0.0
) -> tuple[float, list[Block]]:
    """The best total score, and its blocks (rows, columns) as ranges that start at 0, in order.

    scores: [M, W], numbers; a numpy array, a tensor or lists.
    """
    table = np.asarray(scores, dtype=np.float64)
    if table.ndim != 2:
        raise ShapeError(f"scores must be [rows, columns], not {list(table.shape)}")
    rows, columns = table.shape
    if not rows and not columns:
        return 0.0, []
    if not (rows and columns):
        raise InputError(f"{rows} rows cannot be aligned with {columns} columns: one side is empty")
    if not np.isfinite(table).all():
        raise InputError("scores must be finite: use a low number for what should not be aligned")
    down = np.concatenate([np.zeros((1, columns)), table.cumsum(0)])  # sums of the first i rows
    along = np.concatenate([np.zeros((rows, 1)), table.cumsum(1)], axis=1)
    best = np.full((rows + 1, columns + 1), -np.inf)
    best[0, 0] = 0.0
    # Where the block that ends at (i, j) begins.
    begin = np.zeros((rows + 1, columns + 1, 2), np.int64)
    column = np.arange(1, columns + 1)
    width = column[:, None] - np.arange(columns)  # [j, j - r]: r, where it is at least 1
    for i in range(1, rows + 1):
        height = i - np.arange(i)[:, None]  # [i - r, 1]: r
        mean = (down[i] - down[:i]) / height
        tall = best[:i, :-1] + mean - length_penalty * height / rows  # [i - r, j]
        mean = (along[i - 1, 1:, None] - along[i - 1, :-1]) / np.maximum(width, 1)
        wide = best[i - 1, :-1] + mean - length_penalty * width / columns  # [j, j - r]
        wide = np.where(width > 0, wide, -np.inf)
        top, left = tall.argmax(0), wide.argmax(1)
        tallest, widest = tall[top, column - 1], wide[column - 1, left]
        taller = tallest >= widest
        best[i, 1:] = np.where(taller, tallest, widest)
        begin[i, 1:, 0] = np.where(taller, top, i - 1)
        begin[i, 1:, 1] = np.where(taller, column - 1, left)
    blocks, i, j = [], rows, columns
    while i and j:
        top, left = begin[i, j].tolist()
        blocks.append((range(top, i), range(left, j)))
        i, j = top, left
    return float(best[rows, columns]), blocks[::-1]


def aligned_pairs(blocks: list[Block]) -> set[Pair]:
    """The (row, column) pairs that blocks put together: what precision and recall count."""
    return {(row, column) for rows, columns in blocks for row in rows for column in columns}


def alignment_f1(aligned: Sequence[set[Pair]], truth: Sequence[set[Pair]]) -> float:
    """F1 of the pairs of several alignments together: 2 right / (aligned + true), 0 for none."""
    right = sum(len(one & other) for one, other in zip(aligned, truth, strict=True))
    return 2 * right / max(1, sum(map(len, aligned)) + sum(map(len, truth)))
