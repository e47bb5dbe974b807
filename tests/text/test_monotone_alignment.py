"""The alignment against every alignment there is."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenry.core.errors import InputError, ShapeError
from tokenry.text.monotone_alignment import aligned_pairs, alignment_f1, monotone_block_alignment


def every_alignment(rows, columns):
    """All ways to cover 0..rows and 0..columns with blocks, of which one side is single."""
    if rows == columns == 0:
        yield []
    for height in range(1, rows + 1):
        for width in range(1, columns + 1):
            if min(height, width) == 1:
                block = (range(rows - height, rows), range(columns - width, columns))
                for before in every_alignment(rows - height, columns - width):
                    yield [*before, block]


def value(blocks, table, penalty):
    rows, columns = table.shape
    total = 0.0
    for notes, words in blocks:
        total += table[np.ix_(list(notes), list(words))].mean()
        # a single pair may be paid for on either side
        shares = [len(notes) / rows] if len(words) == 1 else []
        shares += [len(words) / columns] if len(notes) == 1 else []
        total -= penalty * min(shares)
    return total


@pytest.mark.parametrize("penalty", [0.0, 1.0, 0.3])
@pytest.mark.parametrize("rows", range(1, 6))
@pytest.mark.parametrize("columns", range(1, 6))
def test_is_the_best_of_all(rows, columns, penalty):
    table = np.random.default_rng(rows * 7 + columns).normal(size=(rows, columns))
    values = [value(blocks, table, penalty) for blocks in every_alignment(rows, columns)]
    best, blocks = monotone_block_alignment(table, length_penalty=penalty)
    assert best == pytest.approx(max(values), abs=1e-12)
    assert value(blocks, table, penalty) == pytest.approx(best, abs=1e-12)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 99))
def test_blocks_cover_both_sides_in_order(rows, columns, seed):
    table = np.random.default_rng(seed).normal(size=(rows, columns))
    _, blocks = monotone_block_alignment(table)
    assert [row for notes, _ in blocks for row in notes] == list(range(rows))
    assert [column for _, words in blocks for column in words] == list(range(columns))
    assert all(min(len(notes), len(words)) == 1 for notes, words in blocks)


def test_a_dominating_diagonal_is_returned():
    table = torch.full((6, 6), 0.0).fill_diagonal_(10.0)
    best, blocks = monotone_block_alignment(table)
    assert best == 60.0
    assert aligned_pairs(blocks) == {(i, i) for i in range(6)}


def test_notes_held_on_a_word_and_words_on_one_note():
    table = np.full((4, 4), -5.0)
    for pair in [(0, 0), (1, 0), (2, 0), (3, 1), (3, 2), (3, 3)]:
        table[pair] = 1.0
    best, blocks = monotone_block_alignment(table)
    assert best == 2.0
    assert blocks == [(range(3), range(1)), (range(3, 4), range(1, 4))]


def test_what_cannot_be_aligned_is_said():
    assert monotone_block_alignment(np.zeros((0, 0))) == (0.0, [])
    with pytest.raises(InputError, match="0 rows cannot be aligned with 3 columns"):
        monotone_block_alignment(np.zeros((0, 3)))
    with pytest.raises(InputError, match="finite"):
        monotone_block_alignment([[0.0, float("-inf")]])
    with pytest.raises(ShapeError, match=r"\[3\]"):
        monotone_block_alignment([1.0, 2.0, 3.0])


def test_f1_counts_the_pairs_of_all_alignments_together():
    aligned = [{(0, 0), (1, 1)}, {(0, 0)}]
    truth = [{(0, 0), (1, 0), (2, 1)}, {(0, 0), (1, 1)}]
    assert alignment_f1(aligned, truth) == pytest.approx(2 * 2 / (3 + 5))
    assert alignment_f1(truth, truth) == 1.0
    assert alignment_f1([set()], [set()]) == 0.0
