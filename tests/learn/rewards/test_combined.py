"""Sums and gates of rewards."""

import pytest

from tokenry.core.errors import InputError, ShapeError
from tokenry.learn.rewards.combined import Gate, WeightedSum
from tokenry.learn.rewards.worker import signature_of


def given(*values):
    return lambda prompts, completions: list(values)


def length(prompt, completion):
    return len(completion)


ROWS = (["x"] * 3, ["a", "bb", "ccc"])


def test_the_sum_is_weighted_and_passes_over_none():
    one, other = given(1.0, None, None), given(10.0, 20.0, None)
    assert WeightedSum([one, other], [2.0, -0.5])(*ROWS) == [-3.0, -10.0, None]
    assert WeightedSum([one, other])(*ROWS) == [11.0, 20.0, None]
    assert WeightedSum([length, length])(*ROWS) == [2, 4, 6]


def test_the_gate_lets_pass_from_its_threshold_on():
    gate, value = given(0.5, 0.4, None), given(7.0, 8.0, 9.0)
    assert Gate(gate, value, 0.5)(*ROWS) == [7.0, 0.0, None]
    assert Gate(gate, value, 0.4, otherwise=-1.0)(*ROWS) == [7.0, 8.0, None]
    assert Gate(gate, value)(*ROWS) == [0.0, 0.0, None]
    assert Gate(given(1, 1, 0), given(None, 2, None))(*ROWS) == [None, 2, 0.0]


def test_names_stand_for_rewards_and_columns_are_handed_on():
    total = WeightedSum(["exact_answer", "soft_overlong(longest=4, buffer=2)"], [1.0, 0.5])
    columns = {"answer": ["a", "x", "ccc"], "completion_ids": [[1] * 3, [1], [1] * 9], "level": "?"}
    assert total(*ROWS, **columns) == [0.75, 0.0, 0.5]
    assert signature_of(total).required == ("prompts", "completions", "answer")
    assert signature_of(Gate("tags", total)).required[2:] == ("answer",)
    with pytest.raises(InputError, match='asks for the column "answer"'):
        total(*ROWS, completion_ids=[[1]] * 3)


def test_what_cannot_be_combined_is_refused():
    for wrong in ([], "exact_answer"):
        with pytest.raises(InputError, match="a sum needs a list"):
            WeightedSum(wrong)
    with pytest.raises(ShapeError, match="1 weights for 2 rewards"):
        WeightedSum(["tags", "tags"], [1.0])
    with pytest.raises(InputError, match="weight of WeightedSum is nan"):
        WeightedSum(["tags"], [float("nan")])
    with pytest.raises(InputError, match="number for each token"):
        WeightedSum([given([1.0], [1.0], [1.0])])(*ROWS)
    with pytest.raises(InputError, match=r"gave .* for 3 rows"):
        WeightedSum([given(1.0)])(*ROWS)
