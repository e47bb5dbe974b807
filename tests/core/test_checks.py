from dataclasses import dataclass

import numpy as np
import pytest

from tokenry.core.checks import in_range, one_of, within
from tokenry.core.errors import InputError

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("interval", "inside", "outside"),
    [
        ("(0, inf)", [1e-9, 3, np.float32(2)], [0, -1, INF, NAN]),
        ("[0, 1]", [0, 1, 0.5], [-1e-9, 1.0001, NAN, -INF]),
        ("[0, 1)", [0, 0.999], [1, 1.0]),
        ("(0, inf]", [INF, 2], [0, NAN]),
        ("(-inf, inf)", [-3.5, 0], [INF, -INF, NAN]),
    ],
)
def test_an_interval_means_what_it_means_in_mathematics(interval, inside, outside):
    for value in inside:
        in_range("x", value, interval)
    for value in outside:
        with pytest.raises(InputError, match=r"x is .*must be a number in"):
            in_range("x", value, interval)


@pytest.mark.parametrize("value", [True, "1", None, 1.5, [1]])
def test_what_is_no_whole_number_is_refused_where_one_is_wanted(value):
    with pytest.raises(InputError, match="whole number"):
        in_range("n", value, "[0, inf)", integer=True)


def test_none_passes_only_where_it_may():
    in_range("n", None, "[1, inf)", integer=True, optional=True)
    with pytest.raises(InputError, match="or None"):
        in_range("n", 0, "[1, inf)", integer=True, optional=True)


def test_attributes_are_named_with_their_owner():
    @dataclass
    class Method:
        beta: float
        eta: float = 1.0

        def __post_init__(self):
            within(self, "(0, inf)", "eta", "beta")

    Method(0.1)
    with pytest.raises(InputError, match=r"Method\.beta is inf"):
        Method(INF)


def test_a_choice_names_what_is_known():
    one_of("kind", "a", ("a", "b"))
    with pytest.raises(InputError, match="kind is 'c'; it must be one of 'a', 'b'"):
        one_of("kind", "c", ("a", "b"))


def test_a_malformed_interval_is_the_authors_mistake():
    with pytest.raises(ValueError, match="no interval"):
        in_range("x", 1, "0..1")
