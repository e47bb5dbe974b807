"""TLDR: correctness with a price on length."""

import math

import pytest

from tokenry.core.errors import InputError, UnknownNameError
from tokenry.learn.rewards.tldr import TLDR, length_regularized_reward


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_the_equation():
    given = length_regularized_reward([1, 1, 0.5, 0], [10, 20, 30, 5], [0] * 4, [0.5, 0.5, 0.2, 1])
    mean, spread = 20, math.sqrt(200 / 3)  # of the three correct ones
    assert given == pytest.approx(
        [
            1 - 0.5 * sigmoid((10 - mean) / (spread + 1)),
            1 - 0.5 * sigmoid(0),
            0.5 - 0.2 * 0.5 * sigmoid((30 - mean) / (spread + 1)),
            0.0,
        ]
    )


def test_one_correct_completion_costs_half_the_weight_and_groups_are_apart():
    assert length_regularized_reward([1, 0], [7, 3], [0, 0], [0.5, 0.5]) == [0.75, 0.0]
    given = length_regularized_reward([1, 1], [7, 700], [0, 1], [0.2, 0.2])
    assert given == [0.9, 0.9]
    assert length_regularized_reward([], [], [], []) == []


def test_shorter_is_better_within_bounds_however_long():
    lengths = [1, 2, 50, 51, 1_000_000]
    given = length_regularized_reward([1.0] * 5, lengths, [0] * 5, [0.5] * 5)
    assert given == sorted(given, reverse=True)
    assert all(0.5 <= value <= 1 for value in given)
    assert length_regularized_reward([0.3] * 5, lengths, [0] * 5, [0.0] * 5) == [0.3] * 5


def tldr(level, lengths=(2, 4), **settings):
    texts = ["7"] * len(lengths)
    return TLDR(**settings)(
        ["x"] * len(lengths),
        texts,
        completion_ids=[[1] * (n - 1) + [9] for n in lengths],
        groups=[0] * len(lengths),
        level=[level] * len(lengths),
        answer=texts,
    )


def test_levels_have_their_weights():
    low = sigmoid(-1 / 2)  # lengths 2 and 4: mean 3, deviation 1
    for level, weight in {"short": 0.5, "medium": 0.2, "long": 0.0}.items():
        expected = [1 - weight * low, 1 - weight * (1 - low)]
        assert tldr(level) == pytest.approx(expected)
    with pytest.raises(UnknownNameError, match="unknown level 'shrot'"):
        tldr("shrot")


def test_targets_price_the_distance_from_a_length():
    targets = {"short": 4}
    assert tldr("short", [4, 2, 5, 8, 90], targets=targets) == [1, 0.75, 0.875, 0.5, 0.5]


def test_thinking_ends_at_its_token():
    assert TLDR(end_of_thinking=5)._length([1, 1, 5, 1, 5]) == 3
    assert TLDR(end_of_thinking=6)._length([1, 1, 5, 1, 5]) == 5
    assert TLDR()._length([1, 1, 5]) == 3


def test_correctness_may_be_any_reward_and_its_none_stays_none():
    assert tldr("long", correct="soft_overlong(longest=99, buffer=1)") == [0.0, 0.0]
    none = TLDR()(["x"], ["7"], completion_ids=[[1]], groups=[0], level=["short"], answer=[None])
    assert none == [None]
    with pytest.raises(InputError, match="correctness must be in"):
        tldr("long", correct="soft_overlong(longest=1, buffer=1)")
    with pytest.raises(InputError, match=r"weights\['short'\] is 1.5"):
        TLDR(weights={"short": 1.5})
    assert TLDR().required_columns == ("answer",)
