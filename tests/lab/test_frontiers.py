import math

import pytest

from tokenry.lab.frontiers import crossing, gap_at_equal, hypervolume


def test_crossing_is_linear_between_points_and_none_when_never_passed():
    path = [(0, 0), (4, 2), (3, 10)]
    assert crossing(path, 1.0) == pytest.approx(0.5)
    assert crossing(path, 4.0) == pytest.approx(2.0)
    assert crossing(path, 3.5) == pytest.approx(1.75)  # where it first passes
    assert crossing(path, 5.0) is None
    assert crossing([(1, 7), (1, 8)], 1) is None


def test_the_best_path_of_each_method_counts_at_each_x():
    ours = [[(0, 0), (2, 2)], [(0, 1), (4, 1)]]  # max(x, 1) up to 2, then 1
    theirs = [[(0, 0), (4, 0)]]
    assert gap_at_equal(ours, theirs, [0.0, 0.25, 0.5, 1.0]) == pytest.approx((1 + 1 + 2 + 1) / 4)
    assert gap_at_equal(theirs, ours, [0.25]) == pytest.approx(-1)


def test_by_default_nine_levels_from_where_both_begin_to_where_both_end():
    ours, theirs = [[(0, 0), (8, 64)]], [[(4, 0), (16, 0)]]
    expected = sum(8 * (4 + 4 * level / 8) for level in range(9)) / 9
    assert gap_at_equal(ours, theirs) == pytest.approx(expected)


def test_what_only_one_method_passed_is_left_out():
    ours, theirs = [[(0, 1), (1, 1)], [(3, 5), (4, 5)]], [[(0, 0), (4, 0)]]
    assert gap_at_equal(ours, theirs, [0.0, 0.5, 1.0]) == pytest.approx((1 + 5) / 2)
    assert gap_at_equal([[(0, 1), (1, 1)]], [[(2, 0), (3, 0)]], [0.0, 1.0]) == 0.0


def test_the_hypervolume_is_the_area_of_the_dominated_steps():
    points = [(1, 3), (3, 1), (2, 2), (1, 1)]
    assert hypervolume(points, (0, 0)) == pytest.approx(1 * 3 + 1 * 2 + 1 * 1)
    assert hypervolume(points, (1, 1)) == pytest.approx(1)
    assert hypervolume([(5, 5)], (1, 2)) == pytest.approx(12)
    assert hypervolume([(0, 9)], (1, 1)) == 0.0
    assert not math.isnan(hypervolume([], (0, 0)))
