"""Verifiers as a reward."""

import pytest

from tokenry.core.errors import InputError, UnknownNameError
from tokenry.learn.rewards.constraint_rate import ConstraintRate
from tokenry.tasks.verifiers.base import Verifier
from tokenry.tasks.verifiers.programs import json_schema, one_of


def test_the_weighted_share_of_passed_checks():
    short = Verifier("short", lambda y: len(y) < 4, weight=3.0)
    rate = ConstraintRate([one_of(["yes", "no"]), short])
    given = rate(["x"] * 3, ["yes", "maybe", "abc"], groups=[0, 0, 0])
    assert given == [1.0, 0.0, 0.75]


def test_json_validity_is_a_check():
    by_name = ConstraintRate(["json_schema({'a': 'integer'})"])
    by_value = ConstraintRate((json_schema({"a": "integer"}),))
    texts = ['{"a": 1}', '{"a": "1"}', '{"a": 1']
    for rate in (by_name, by_value):
        assert rate(["x"] * 3, texts, groups=[0, 1, 2]) == [1.0, 0.0, 0.0]


def test_group_checks_see_the_completions_of_one_prompt():
    rate = ConstraintRate(["symmetric"])
    assert rate(["x"] * 4, ["a", "b", "a", "c"], groups=[0, 1, 0, 1]) == [1.0, 0.0, 1.0, 0.0]


def test_wrong_checks_are_refused_when_it_is_made():
    with pytest.raises(UnknownNameError, match="one_off"):
        ConstraintRate(["one_off(['a'])"])
    with pytest.raises(InputError, match="no verifier with literal arguments"):
        ConstraintRate(["one_of(options)"])
    with pytest.raises(InputError, match="without constraints"):
        ConstraintRate([])
    with pytest.raises(InputError, match="must be a list"):
        ConstraintRate("symmetric")
