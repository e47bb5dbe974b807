"""PrefixTrie against brute force over the inserted sequences."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenry.core.errors import InputError
from tokenry.text.prefix_trie import PrefixTrie

SEQUENCES = st.lists(st.lists(st.integers(0, 2), max_size=5), min_size=1, max_size=8)


def test_worked_example_of_shared_prefixes():
    trie = PrefixTrie.of(["abc", "abd", "ae"], values=[1, 0, 0])
    assert trie.mean("a") == pytest.approx(1 / 3)
    assert trie.mean("ab") == 0.5
    assert trie.means("abc") == pytest.approx([1 / 3, 0.5, 1.0])
    assert trie.means("abd") == pytest.approx([1 / 3, 0.5, 0.0])
    assert trie.means("ae") == pytest.approx([1 / 3, 0.0])
    assert trie.mean() == pytest.approx(1 / 3)


@given(SEQUENCES, st.data())
def test_counts_and_sums_are_those_of_brute_force(sequences, data):
    size = st.lists(st.floats(-5, 5), min_size=len(sequences), max_size=len(sequences))
    values = data.draw(size)
    trie = PrefixTrie.of(sequences, values)
    prefixes = {tuple(s[:n]) for s in sequences for n in range(len(s) + 1)}
    assert len(trie) == len(prefixes)
    for prefix in prefixes:
        node = trie.find(prefix)
        having = [
            v for s, v in zip(sequences, values, strict=True) if (*s,)[: len(prefix)] == prefix
        ]
        assert trie.count[node] == len(having)
        assert trie.total[node] == pytest.approx(sum(having), abs=1e-9)
        assert trie.ended[node] == sum(tuple(s) == prefix for s in sequences)


@given(SEQUENCES)
def test_a_node_counts_its_children_and_its_own_ends(sequences):
    trie = PrefixTrie.of(sequences)
    for node, below in enumerate(trie.children):
        assert trie.count[node] == trie.ended[node] + sum(trie.count[c] for c in below.values())


@given(SEQUENCES, st.lists(st.integers(0, 3), max_size=6))
def test_first_divergent_is_the_longest_shared_prefix(sequences, query):
    longest = max(n for n in range(len(query) + 1) if any(s[:n] == query[:n] for s in sequences))
    assert PrefixTrie.of(sequences).first_divergent(query) == longest


def test_multiplicity_weighs():
    trie = PrefixTrie()
    trie.insert([1, 2], value=1.0, count=3)
    trie.insert([1, 3], value=0.0)
    assert trie.mean([1]) == 0.75


def test_first_divergent_token_of_a_name():
    valid = PrefixTrie.of(["numpy", "numba"])
    assert valid.first_divergent("numfast") == 3
    assert valid.first_divergent("num") == 3
    assert valid.first_divergent("numpy") == 5
    assert valid.first_divergent("zoo") == 0


def test_membership_is_of_whole_sequences():
    trie = PrefixTrie.of(["numpy"])
    assert "numpy" in trie
    assert "num" not in trie
    assert "" not in trie


def test_reading_what_was_never_inserted_is_an_error():
    trie = PrefixTrie.of([[1, 2]])
    with pytest.raises(InputError, match=r"begins with \[2\]"):
        trie.mean([2])
    with pytest.raises(InputError, match="goes on after"):
        trie.means([1, 3])
    with pytest.raises(InputError, match="-1"):
        trie.insert([1], count=-1)
