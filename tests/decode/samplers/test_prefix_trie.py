"""The trie of prefixes: the bounds by hand, and where floats would run out."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenry.decode.samplers.prefix_trie import DEAD, Node, log_sum, visit


def logs(*probabilities):
    return torch.tensor([probabilities], dtype=torch.float64).log()


def test_two_leaves():
    """The root accepts a and b with .6 and .3; after a, one token of .5 is accepted."""
    root = Node()
    assert root.bound == 1.0
    visit([root], logs(0.6, 0.3, 0.0))
    assert root.bound == pytest.approx(0.9)
    root.try_token(0, logs(0.6, 0.3, 0.0)[0])
    assert root.bound == pytest.approx(0.9)
    visit([root.child(0)], logs(0.0, 0.0, 0.5))
    assert root.child(0).bound == pytest.approx(0.5)
    assert root.bound == pytest.approx(0.6)
    future = visit([root], logs(0.6, 0.3, 0.0))
    weighted = (logs(0.6, 0.3, 0.0) + future).exp()[0]
    assert float(weighted[0] / weighted.sum()) == pytest.approx(0.5)


def test_visiting_again_changes_nothing():
    root = Node()
    for _ in range(3):
        visit([root], logs(0.2, 0.5, 0.0))
        root.try_token(1, logs(0.2, 0.5, 0.0)[0])
        visit([root.child(1)], logs(0.25, 0.0, 0.0))
        assert root.bound == pytest.approx(0.2 + 0.5 * 0.25, abs=1e-15)


def test_a_dead_end_is_known_to_all_that_lead_to_it():
    root = Node()
    visit([root], logs(0.0, 0.4))
    root.try_token(1, logs(0.0, 0.4)[0])
    visit([root.child(1)], logs(0.0, 0.0))
    assert root.child(1).log_bound == DEAD
    assert visit([root], logs(0.0, 0.4))[0, 1] == DEAD
    assert root.log_bound == DEAD


def test_nothing_is_given_up_because_of_rounding():
    """All but 1e-20 of the mass is tried and dead: what is left is still open."""
    root = Node()
    visit([root], logs(1.0, 1e-20))
    root.try_token(0, logs(1.0, 1e-20)[0])
    visit([root.child(0)], logs(0.0, 0.0))
    assert root.bound == pytest.approx(1e-20)
    visit([root], logs(1.0, 1e-20))
    assert root.bound == pytest.approx(1e-20)


def test_bounds_far_below_the_smallest_float():
    root = node = Node()
    for _ in range(400):
        visit([node], logs(1e-5, 0.0))
        node.try_token(0, logs(1e-5, 0.0)[0])
        node = node.child(0)
    assert root.log_bound == pytest.approx(400 * math.log(1e-5))
    assert node.log_bound == 0.0


def test_prefixes_that_were_never_visited_stay_open():
    """A text that begins in the middle: what is learned stops at the first unknown ancestor."""
    root = Node()
    deep = root.child(3).child(1)
    visit([deep], logs(0.0, 0.1, 0.0, 0.0))
    assert (deep.bound, root.bound) == (pytest.approx(0.1), 1.0)
    visit([root.child(3)], logs(0.1, 0.5, 0.2, 0.2))
    assert root.child(3).bound == pytest.approx(0.1 + 0.2 + 0.2 + 0.5 * 0.1)
    assert root.at([3, 1]) is deep
    assert root.at([3, 2, 0]) is None


@given(st.lists(st.floats(-800, 5) | st.just(DEAD), min_size=1, max_size=6))
def test_log_sum(values):
    exact = torch.tensor(values, dtype=torch.float64).logsumexp(0)
    assert log_sum(values) == pytest.approx(float(exact), abs=1e-12)
