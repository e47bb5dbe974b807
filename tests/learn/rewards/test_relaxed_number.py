"""Numbers within a tolerance."""

import pytest

from tokenry.core.errors import InputError
from tokenry.learn.rewards.relaxed_number import RelaxedNumber, number_of, relaxed_number_match


@pytest.mark.parametrize(
    ("predicted", "gold", "value"),
    [
        ("209", 200, 1.0),
        ("210", 200, 1.0),
        ("211", 200, 0.0),
        ("190", "200", 1.0),
        ("189", "200", 0.0),
        ("-209", -200, 1.0),
        ("0", 0, 1.0),
        ("0.001", 0, 0.0),
        ("many", 200, 0.0),
        ("North  sea", "north sea", 1.0),
        ("12", "north sea", 0.0),
    ],
)
def test_five_percent_of_the_gold_number(predicted, gold, value):
    assert relaxed_number_match(predicted, gold) == value
    assert RelaxedNumber()(["x"], [f"<answer>{predicted}</answer>"], [gold]) == [value]


def test_soft_credit_falls_with_the_relative_error():
    for predicted, value in (("200", 1.0), ("250", 0.75), ("150", 0.75), ("400", 0), ("900", 0)):
        assert relaxed_number_match(predicted, 200, soft=True) == value
    assert relaxed_number_match("1", 0, soft=True) == 0.0
    assert relaxed_number_match("0", 0, soft=True) == 1.0


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1,234", 1234),
        ("45%", 45),
        (" $1,234.5 ", 1234.5),
        (".5", 0.5),
        ("-3e2", -300),
        ("1,23", None),
        ("12 34", None),
        ("", None),
        ("-", None),
        ("1e999", None),
        (7, 7),
    ],
)
def test_numbers_as_they_are_written(text, number):
    assert number_of(text) == number


def test_several_golds_none_and_settings():
    assert RelaxedNumber()(["x"] * 2, ["5", "5"], [[9, 5], None]) == [1.0, None]
    assert RelaxedNumber(tolerance=0)(["x"], ["209"], [200]) == [0.0]
    with pytest.raises(InputError, match="tolerance is 1"):
        RelaxedNumber(1)
