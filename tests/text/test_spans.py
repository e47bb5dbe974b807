"""Spans of characters against brute force over single characters."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenry.core.errors import InputError, UnknownNameError
from tokenry.text.spans import find_spans, token_labels

edge = st.integers(0, 12)
piece = st.tuples(edge, edge).map(lambda pair: (min(pair), max(pair)))
labelled = st.tuples(piece, st.integers(-3, 3)).map(lambda found: (*found[0], found[1]))


@given(st.lists(piece, max_size=8), st.lists(labelled, max_size=5))
def test_a_token_is_labelled_by_the_spans_that_share_a_character_with_it(offsets, spans):
    def overlapping(start, end):
        characters = set(range(start, end))
        return [label for a, b, label in spans if characters & set(range(a, b))]

    for rule, pick in (("last", lambda x: x[-1]), ("first", lambda x: x[0]), ("max", max)):
        expected = [pick(hit) if (hit := overlapping(*token)) else 9 for token in offsets]
        assert token_labels(offsets, spans, 9, rule=rule) == expected


def test_tokens_straddling_the_border_of_a_name_count_and_touching_ones_do_not():
    #        import numpy as
    offsets = [(0, 6), (6, 9), (9, 14), (14, 15), (15, 15)]
    assert token_labels(offsets, [(7, 12, "name")], "") == ["", "name", "name", "", ""]


def test_a_default_above_the_labels_does_not_win():
    assert token_labels([(0, 1), (1, 2)], [(0, 1, 0.5)], 1.0, rule="max") == [0.5, 1.0]


@given(st.text("ab", max_size=12), st.sets(st.text("ab", min_size=1, max_size=3), max_size=4))
def test_finds_every_occurrence_that_is_not_inside_another(text, needles):
    occurrences = {
        (start, start + len(needle), needle)
        for needle in needles
        for start in range(len(text))
        if text.startswith(needle, start)
    }
    expected = {
        (a, b, needle)
        for a, b, needle in occurrences
        if not any(c <= a and b <= d and (a, b) != (c, d) for c, d, _ in occurrences)
    }
    found = find_spans(text, needles)
    assert found == sorted(expected)


def test_a_name_twice_is_found_twice_and_the_longest_name_wins():
    text = "numpy, numpy_financial, numpy"
    found = find_spans(text, ["numpy", "numpy_financial"])
    assert found == [(0, 5, "numpy"), (7, 22, "numpy_financial"), (24, 29, "numpy")]


def test_whole_words_fall_back_to_a_shorter_needle_that_is_one():
    assert find_spans("pyth py.py python3", ["py"], whole_words=True) == [
        (5, 7, "py"),
        (8, 10, "py"),
    ]
    assert find_spans("ab.b", ["ab.b c", "ab"], whole_words=True) == [(0, 2, "ab")]


@pytest.mark.parametrize(
    ("text", "needle", "places"),
    [
        ("here we require re, re.", "re", [16, 20]),
        ("import re", " re", [6]),
        ("x = f(re(1), more(1))", "re(", [6]),
        ("use --re=1", "--re", [4]),
        ("東京の京", "京", [1, 3]),  # scripts without spaces have a boundary at every character
        ("caf\u00e9 cafe\u0301 cafe", "cafe", [11]),  # an accent of its own belongs to the word
    ],
)
def test_whole_words_are_those_between_boundaries(text, needle, places):
    assert [start for start, _, _ in find_spans(text, [needle], whole_words=True)] == places


def test_needles_are_texts_and_not_patterns():
    assert find_spans("a.c abc", ["a.c"]) == [(0, 3, "a.c")]
    assert find_spans("abc", []) == []


def test_what_cannot_be_is_refused():
    with pytest.raises(InputError, match="5 to 2"):
        token_labels([(5, 2)], [], 0)
    with pytest.raises(InputError, match="-1"):
        token_labels([(0, 2)], [(-1, 2, 1)], 0)
    with pytest.raises(UnknownNameError, match="min"):
        token_labels([], [], 0, rule="min")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="empty"):
        find_spans("abc", [""])
