"""String search against Python's own `in` and `startswith`."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenry.core.errors import InputError
from tokenry.text.string_search import StringSearch, TokenTrie
from tokenry.text.vocabulary import token_bytes

SHORT = st.lists(st.sampled_from(b"abc\xff"), min_size=1, max_size=4).map(bytes)
STRINGS = st.lists(SHORT, max_size=6)
TEXT = st.lists(st.sampled_from(b"abc\xff"), max_size=20).map(bytes)
PIECES = st.lists(st.just(b"") | SHORT, max_size=20)


@given(STRINGS, TEXT)
def test_finds_every_occurrence_of_every_string(strings, text):
    expected = {
        (start, start + len(string), number)
        for number, string in enumerate(strings)
        for start in range(len(text))
        if text.startswith(string, start)
    }
    found = list(StringSearch(strings).find(text))
    assert set(found) == expected
    assert len(found) == len(expected)
    assert [end for _, end, _ in found] == sorted(end for _, end, _ in found)


@given(STRINGS, TEXT, st.integers(0, 20))
def test_reading_in_two_pieces_is_reading_at_once(strings, text, cut):
    search = StringSearch(strings)
    middle, first = search.read(text[:cut])
    end, second = search.read(text[cut:], middle)
    whole = search.read(text)
    assert whole == (end, first | second)
    assert whole[1] == {n for n, string in enumerate(strings) if string in text}


@given(STRINGS, TEXT)
def test_the_state_is_the_longest_prefix_that_the_text_ends_with(strings, text):
    search = StringSearch(strings)
    state, _ = search.read(text)
    prefixes = {string[:size] for string in strings for size in range(len(string) + 1)} | {b""}
    assert search.depth[state] == max(len(p) for p in prefixes if text.endswith(p))
    assert search.hits[state] == any(text.endswith(string) for string in strings)


@given(STRINGS, PIECES, TEXT)
def test_walking_the_vocabulary_is_reading_each_token(strings, pieces, before):
    search, trie = StringSearch(strings), TokenTrie(pieces)
    state, _ = search.read(before)
    states, seen = trie.walk(search.table, state, search.marks)
    plain, nothing = trie.walk(search.table, state)
    assert len(trie) == len(pieces)
    assert np.array_equal(states, plain)
    assert not nothing.any()
    for token, piece in enumerate(pieces):
        after, found = search.read(piece, state)
        assert states[token] == after
        assert {n for n in range(len(strings)) if int(seen[token, 0]) >> n & 1} == found


def test_more_strings_than_bits_in_a_machine_word():
    strings = [b"%d." % number for number in range(100)]
    search, trie = StringSearch(strings), TokenTrie([b"7.9", b"9.99.", b"", b"x"])
    _, seen = trie.walk(search.table, search.read(b"6")[0], search.marks)
    bits = [{n for n in range(100) if int(row[n // 64]) >> n % 64 & 1} for row in seen]
    assert bits == [{7, 67}, {9, 69, 99}, set(), set()]


def test_the_classic_example():
    search = StringSearch([b"he", b"she", b"his", b"hers"])
    assert list(search.find(b"ushers")) == [(1, 4, 1), (2, 4, 0), (2, 6, 3)]


def test_a_tokenizers_trie_is_made_once(tiny_tokenizer):
    trie = TokenTrie.of(tiny_tokenizer)
    assert TokenTrie.of(tiny_tokenizer) is trie
    assert list(trie.pieces) == token_bytes(tiny_tokenizer)
    search = StringSearch(["東京".encode(), b"the cat"])
    states, seen = trie.walk(search.table, 0, search.hits)
    for token, piece in enumerate(trie.pieces):
        state, found = search.read(piece)
        assert (states[token], seen[token]) == (state, bool(found))


def test_no_strings_find_nothing_and_an_empty_one_is_refused():
    assert list(StringSearch([]).find(b"abc")) == []
    with pytest.raises(InputError, match="string 1 is empty"):
        StringSearch([b"a", b""])
