"""Concentration: how few values carry how much."""

import math
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenry.core.errors import InputError
from tokenry.measure.concentration import Concentration, overlap

WORKED = Concentration(torch.tensor([1.0, 0.0, 6.0, 1.0, 2.0]))
VALUES = st.lists(st.integers(0, 9), min_size=1, max_size=7)


def test_a_worked_example():
    assert WORKED.carried().tolist() == pytest.approx([0, 0.6, 0.8, 0.9, 1, 1])
    assert WORKED.carrying(0.5) == WORKED.carrying(0.6) == 1 / 5
    assert WORKED.carrying(0.61) == WORKED.carrying(0.8) == 2 / 5
    assert (WORKED.carrying(0.0), WORKED.carrying(1.0)) == (0.0, 4 / 5)
    assert (WORKED.below(1.0), WORKED.above(1.0)) == (1 / 5, 2 / 5)
    assert WORKED.curve()[:3] == [(0.0, 0.0), (0.2, pytest.approx(0.6)), (0.4, pytest.approx(0.8))]


@given(VALUES, st.integers(0, 10))
def test_no_smaller_set_carries_as_much(values, tenths):
    count = Concentration(torch.tensor(values).float()).carrying(tenths / 10) * len(values)
    enough = [
        size
        for size in range(len(values) + 1)
        for chosen in combinations(values, size)
        if 10 * sum(chosen) >= tenths * sum(values)
    ]
    assert round(count) == min(enough)


def test_even_values_carry_their_share_and_a_single_one_all():
    assert Concentration(torch.ones(10)).carrying(0.5) == 0.5
    assert Concentration(torch.eye(10)[3]).carrying(1.0) == 0.1


def test_nothing_to_carry():
    spread = Concentration(torch.tensor([0.0, -1e-7, 0.0]))  # rounding below 0
    assert spread.carrying(1.0) == 0.0
    assert spread.carried().tolist() == [0.0] * 4


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.2, 1), (0.21, 2), (0.4, 2), (1.0, 5)])
def test_the_largest_values_are_so_many_and_ties_go_to_the_first_place(share, count):
    chosen = WORKED.largest(share)
    assert int(chosen.sum()) == count
    assert chosen.nonzero()[:, 0].tolist() == sorted([2, 4, 0, 3, 1][:count])


def test_overlap_of_sets():
    one, other = torch.tensor([1, 1, 0, 0]).bool(), torch.tensor([0, 1, 1, 0]).bool()
    assert overlap(one, other) == pytest.approx(1 / 3)
    assert (overlap(one, one), overlap(one, ~one)) == (1.0, 0.0)
    assert overlap(torch.zeros(2).bool(), torch.zeros(2).bool()) == 1.0


@pytest.mark.parametrize(
    "wrong", [torch.tensor([1.0, -0.1]), torch.tensor([math.inf]), torch.tensor([math.nan]),
              torch.zeros(0), torch.zeros(1, 2)],
)  # fmt: skip
def test_values_without_shares_are_refused(wrong):
    with pytest.raises(InputError):
        Concentration(wrong)
    with pytest.raises(InputError, match="mass"):
        WORKED.carrying(1.5)
