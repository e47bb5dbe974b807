"""Contains against `in` on the written bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenry.core.errors import ConstraintError
from tokenry.decode.constraints.contains import Contains
from tokenry.decode.constraints.length import Length

PIECES = [b"", b"", b"a", b"b", b"ab", b"ba", b"aab", b"\xc3", b"\xa9"]
EOS = [0]


@given(
    strings=st.lists(st.sampled_from(["a", "ab", "ba", "aba", "bb", "é"]), min_size=1, max_size=4),
    tokens=st.lists(st.integers(2, len(PIECES) - 1), max_size=8),
)
def test_complete_when_every_string_was_written(strings, tokens):
    state = Contains(strings, PIECES, eos=EOS).initial()
    text = b""
    for token in tokens:
        assert state.allows(token)
        state = state.advance(token)
        text += PIECES[token]
        missing = [s.encode() for s in strings if s.encode() not in text]
        assert state.complete == (not missing) == state.allows(0)
        assert sorted(state.missing) == sorted(missing)
        assert state.mask().tolist() == [not missing, False, *[True] * (len(PIECES) - 2)]


def test_refuses_to_end_and_says_what_is_missing():
    state = Contains(["aab", "é"], PIECES, eos=EOS).initial().advance(6)
    with pytest.raises(ConstraintError, match=r"\['é'\] is missing"):
        state.advance(0)
    with pytest.raises(ConstraintError, match="is empty"):
        Contains([""], PIECES, eos=EOS)


def test_with_a_length_the_text_has_both():
    both = Contains(["ab"], PIECES, eos=EOS) & Length(2, 3, PIECES, eos=EOS)
    state = both.initial().advance(2).advance(3)
    assert state.complete
    assert not both.initial().advance(4).complete
    assert not state.advance(2).allows(2)
