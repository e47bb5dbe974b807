"""Boundaries between words, and the bytes that carry them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenry.text.word_boundaries import (
    BOUNDARY,
    UNSPACED,
    boundaries,
    folded,
    is_boundary,
    kind_of,
    marked,
)

WORDS = st.text("abE1_ .-é", max_size=10)


@given(WORDS)
def test_in_scripts_with_spaces_they_are_where_two_word_characters_do_not_meet(text):
    inside = [bool(re.fullmatch(r"\w\w", text[i - 1 : i + 1])) for i in range(1, len(text))]
    expected = [True, *(not both for both in inside), True] if text else [True]
    assert boundaries(text) == expected


@given(WORDS, WORDS)
def test_a_phrase_stands_in_a_text_exactly_where_its_marked_bytes_do(text, phrase):
    if not phrase:
        return
    edges = boundaries(text)
    places = [
        start
        for start in range(len(text) - len(phrase) + 1)
        if text.startswith(phrase, start) and edges[start] and edges[start + len(phrase)]
    ]
    found = marked(text, fold_case=False).count(marked(phrase, fold_case=False)) > 0
    assert found == bool(places)


@pytest.mark.parametrize(
    ("text", "phrase", "stands"),
    [
        ("the cat.", "cat", True),
        ("the cats", "cat", False),
        ("THE CAT", "the cat", True),
        ("concat", "cat", False),
        ("cat", "cat", True),
        ("don't", "don", True),
        ("東京は", "京", True),
        ("cafe\u0301s", "cafe\u0301", False),
        ("cafe\u0301", "cafe", False),
        ("กำ", "ก", True),  # U+0E33 is a letter for Unicode
        ("กิ", "ก", False),  # U+0E34 is a mark on it
        ("C++, then", "c++", True),
        ("covid-19 is", "covid-19", True),
        ("covid-195", "covid-19", False),
    ],
)
def test_examples(text, phrase, stands):
    assert (marked(phrase) in marked(text)) == stands


@given(st.text(max_size=6), st.text(max_size=6))
def test_folding_goes_piece_by_piece(first, second):
    assert folded(first + second) == folded(first) + folded(second)


def test_the_mark_is_no_byte_of_any_text_and_edges_are_boundaries():
    assert all(BOUNDARY not in chr(point).encode() for point in (0x7F, 0x7FF, 0xFFFF, 0x10FFFF))
    assert is_boundary(None, "mark")
    assert is_boundary("word", None)
    assert not is_boundary("other", "mark")
    assert marked("") == BOUNDARY


def test_the_blocks_of_scripts_are_in_order_and_apart():
    edges = [edge for block in UNSPACED for edge in block]
    assert edges == sorted(edges)
    assert [kind_of(c) for c in "aé1_东かก \u0301-"] == [
        *["word"] * 4,
        *["unspaced"] * 3,
        "other",
        "mark",
        "other",
    ]
