"""Verifiers of texts, and the rate at which a set of them is satisfied."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenry.core.errors import InputError, UnknownNameError
from tokenry.tasks.verifiers.programs import (
    ConstraintSet,
    Verifier,
    copy_rate,
    disjoint_answers,
    hierarchy_closed,
    json_schema,
    labels_from,
    length_between,
    one_of,
    regex,
    symmetric,
)


def rate(constraint, response, prompt=""):
    return ConstraintSet.of(constraint).csr([prompt], [response])[0]


def test_a_label_needs_the_ones_above_it():
    assert rate(hierarchy_closed(), "person, person/artist") == 1
    assert rate(hierarchy_closed(), "person/artist") == 0
    assert rate(hierarchy_closed(), "a, a/b, a/b/c") == 1
    assert rate(hierarchy_closed(), "a, a/b/c") == 0
    assert rate(hierarchy_closed({"artist": "person"}), "artist") == 0
    assert rate(hierarchy_closed({"artist": "person"}), "artist, person") == 1


@pytest.mark.parametrize(
    ("constraint", "good", "bad"),
    [
        (one_of(["yes", "no"]), " yes\n", "yes and no"),
        (labels_from(["a", "b"]), "b, a", "a, c"),
        (labels_from(["a", "b"]), "a", ""),
        (length_between(2, 3), "two words", "one"),
        (length_between(2, 3), "and three words", "now there are four"),
        (regex(r"\d+ km"), "12 km", "12 km away"),
        (json_schema(), '{"a": 1}', "[1]"),
        (json_schema({"n": "integer", "ok": "boolean"}), '{"n": 1, "ok": true}', '{"n": 1}'),
        (json_schema({"n": "number"}), '{"n": 1.5}', '{"n": true}'),
        (json_schema({"n": "number"}), '{"n": 1}', "not JSON"),
    ],
)
def test_built_in_checks_of_a_response(constraint, good, bad):
    assert rate(constraint, good) == 1
    assert rate(constraint, bad) == 0


def test_copy_rate_is_a_share_or_a_threshold():
    assert rate(copy_rate(), "The cat flew", "the cat sat") == pytest.approx(2 / 3)
    assert rate(copy_rate(0.5), "The cat flew", "the cat sat") == 1
    assert rate(copy_rate(0.9), "The cat flew", "the cat sat") == 0


def test_a_group_constraint_credits_every_member_of_its_group():
    checks = ConstraintSet.of(disjoint_answers(), length_between(1, 1))
    prompts = ["before?", "before?", "after?", "after?"]
    found = checks.csr(prompts, ["war", "war", "peace", "war"], groups=["e", "f", "e", "f"])
    assert found == [1.0, 0.5, 1.0, 0.5]
    assert ConstraintSet.of(symmetric()).csr(["p", "q"], ["Yes ", "yes"], [0, 0]) == [1.0, 1.0]
    with pytest.raises(InputError, match="groups"):
        checks.csr(prompts, ["a"] * 4)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.1, 5)), min_size=1, max_size=5))
def test_the_rate_is_the_weighted_mean(cases):
    made = [
        Verifier(str(n), lambda y, v=value: v, weight=weight)
        for n, (value, weight) in enumerate(cases)
    ]
    expected = sum(v * w for v, w in cases) / sum(w for _, w in cases)
    assert ConstraintSet.of(*made).csr(["p"], ["y"])[0] == pytest.approx(expected)


def test_checks_from_texts():
    checks = ConstraintSet.parse(["length_between(1, longest=2)", 'one_of(["a b", "c d e"])'])
    assert checks.csr(["", ""], ["a b", "c d e"]) == [1.0, 0.5]
    assert ConstraintSet.parse(["symmetric"]).constraints[0].scope == "group"
    with pytest.raises(UnknownNameError, match="length_between"):
        ConstraintSet.parse(["length_betwen(1, 2)"])
    with pytest.raises(InputError, match="literal"):
        ConstraintSet.parse(["length_between(__import__('os').getpid(), 2)"])
    with pytest.raises(InputError, match="length_between"):
        ConstraintSet.parse(["length_between(1)"])


def test_what_cannot_be_rated_is_an_error():
    with pytest.raises(InputError, match="add one"):
        ConstraintSet.of()
    with pytest.raises(InputError, match="one of each"):
        ConstraintSet.of(symmetric()).csr(["p"], [])
    with pytest.raises(InputError, match=r"2\.0"):
        rate(Verifier("broken", lambda y: 2.0), "y")
    with pytest.raises(InputError, match=r"weight is 0"):
        Verifier("none", lambda y: 1.0, weight=0)
