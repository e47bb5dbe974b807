"""The token curriculum: worked budgets, lengths and chances; draws follow them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenry.core.errors import InputError
from tokenry.learn.policy.token_curriculum import (
    curriculum,
    draw_positions,
    entropy_bins,
    length_reward,
    token_budget,
)

T = torch.tensor


def test_the_worked_budgets():
    assert [token_budget(p / 4) for p in range(5)] == [800, 534, 357, 239, 160]
    assert token_budget(1.0, 8, 3) == 3
    assert token_budget(1.0, 8, gamma=0.25) == 2


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 900), st.integers(1, 9))
def test_budgets_never_rise_nor_fall_below_the_least(one, other, start, least):
    early, late = (token_budget(p, start, least) for p in sorted((one, other)))
    assert early >= late >= least


def test_the_worked_lengths():
    found = length_reward(T([0.0, 50, 100, 150, 200, 250]), T(100.0))
    assert found.tolist() == [0, 0.5, 1, 0.5, 0, 0]
    assert length_reward(T([1.0]), T([1.0]), 0.5).tolist() == [0.5]


def test_the_curriculum_moves_evenly_between_its_ends():
    for progress, chances in ((0.0, (0.6, 0.3, 0.1)), (0.3, (0.6, 0.3, 0.1)),
                              (0.5, (0.35, 0.3, 0.35)), (0.7, (0.1, 0.3, 0.6)),
                              (1.0, (0.1, 0.3, 0.6))):  # fmt: skip
        torch.testing.assert_close(curriculum(progress), T(chances))
    assert curriculum(0.4).sum().item() == pytest.approx(1)
    sudden = [curriculum(p, t1=0.5, t2=0.5)[0].item() for p in (0.49, 0.5)]
    assert sudden == pytest.approx([0.6, 0.1])


def test_bins_are_terciles_of_what_counts():
    entropy = T([[9.0, 1.0, 2.0, 3.0], [0.0, 4.0, 5.0, 6.0]])
    mask = T([[False, True, True, True], [False, True, True, True]])
    assert entropy_bins(entropy, mask).tolist() == [[-1, 0, 0, 1], [-1, 1, 2, 2]]
    assert entropy_bins(entropy, mask, (0.0, 1.0)).tolist() == [[-1, 0, 1, 1], [-1, 1, 1, 1]]
    assert (entropy_bins(entropy, torch.zeros_like(mask)) == -1).all()


def test_drawn_bins_follow_their_chances_and_positions_are_even_within():
    """10^4 draws, false alarms < 1e-6; an empty bin leaves its chance to the others."""
    count, draw = 10_000, torch.Generator().manual_seed(0)
    bins = T([[-1, 0, 0, 0, 2], [1, 1, -1, 1, 1], [-1, 0, 2, 1, -1]])
    p = T([0.5, 0.3, 0.2])
    wanted = T(
        [[0, 5 / 21, 5 / 21, 5 / 21, 2 / 7], [0.25, 0.25, 0, 0.25, 0.25], [0, 0.5, 0.2, 0.3, 0]]
    )
    for row in range(3):
        drawn = draw_positions(bins[row].expand(count, -1), p, draw)
        share, truth = torch.bincount(drawn, minlength=5) / count, wanted[row]
        assert ((share - truth).abs() <= 6 * (truth * (1 - truth) / count).sqrt()).all()
    alone = draw_positions(T([[-1, 1, 1]]).expand(50, -1), T([1.0, 0.0, 0.0]), draw)
    assert set(alone.tolist()) == {1, 2}


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="row 1 has no position"):
        draw_positions(T([[0, 1], [-1, -1]]), T([0.5, 0.5, 0.0]))
    for wrong in ({"progress": 1.5}, {"progress": 0, "gamma": 0}, {"progress": 0, "start": 0}):
        with pytest.raises(InputError):
            token_budget(**wrong)
    for wrong in ({"t1": 0.8}, {"first": (0.5, 0.5, 0.5)}, {"last": (1.5, -0.5, 0.0)}):
        with pytest.raises(InputError):
            curriculum(0.5, **wrong)
    with pytest.raises(InputError):
        entropy_bins(torch.ones(1, 1), torch.ones(1, 1).bool(), (0.7, 0.3))
