"""Literals: what is written reads back equal and of the same types; the rest is refused."""

import ast
import json

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenry.core.errors import InputError
from tokenry.tasks.literals import as_literal

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
SCALARS = SCALARS.filter(lambda value: value not in (float("inf"), float("-inf")))
KEYS = st.integers() | st.text() | st.tuples(st.integers(), st.text())
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(KEYS, inner) | st.sets(KEYS)
    ),
    max_leaves=12,
)


@given(VALUES)
def test_it_reads_back_as_it_was_after_json(value):
    again = ast.literal_eval(json.loads(json.dumps(as_literal(value))))
    assert again == value
    assert type(again) is type(value)


def test_worked_values():
    assert as_literal({1: (2, [3.5, None]), "a": {True}}) == "{1: (2, [3.5, None]), 'a': {True}}"
    scalars = [numpy.str_("x"), numpy.int64(3), numpy.float64(0.5), numpy.bool_(True)]
    assert as_literal(scalars) == "['x', 3, 0.5, True]"


@pytest.mark.parametrize(
    "value", [object(), float("nan"), {"a": [float("inf")]}, numpy.zeros(2), frozenset({1}), len]
)
def test_what_is_no_literal_is_refused(value):
    with pytest.raises(InputError, match="cannot be written"):
        as_literal(value)
