"""Predicates: whole characters only, undecided bytes, caching."""

import pytest

from tokenry.core.errors import ConstraintError
from tokenry.decode.constraints.predicate import Predicate, extend
from tokenry.text.vocabulary import token_bytes


def single_bytes(tokenizer):
    spelling = token_bytes(tokenizer)
    return {piece[0]: token for token, piece in enumerate(spelling) if len(piece) == 1}


def test_the_predicate_sees_whole_characters_only(tiny_tokenizer):
    asked = []
    constraint = Predicate(
        lambda text: not asked.append(text), lambda text: text == "a東", tiny_tokenizer
    )
    byte = single_bytes(tiny_tokenizer)
    state = constraint.initial().advance(byte[ord("a")])
    first, second, third = "東".encode()
    for cut in (first, second):
        state = state.advance(byte[cut])
        assert (state.text, state.complete) == ("a", False)
    assert not state.allows(tiny_tokenizer.eos_token_id)
    state = state.advance(byte[third])
    assert (state.text, state.complete) == ("a東", True)
    assert set(asked) == {"a", "a東"}


def test_bytes_that_are_no_text_are_refused(tiny_tokenizer):
    byte = single_bytes(tiny_tokenizer)
    state = Predicate(lambda _: True, lambda _: True, tiny_tokenizer).initial()
    assert not state.allows(byte[0xFF])
    assert not state.allows(byte[0x80])  # a continuation without a beginning
    cut = state.advance(byte["é".encode()[0]])
    assert not cut.allows(byte[ord("a")])
    with pytest.raises(ConstraintError, match="not allowed"):
        cut.advance(byte[ord("a")])


def test_special_tokens_spell_nothing_and_are_refused(tiny_tokenizer):
    state = Predicate(lambda _: True, lambda _: True, tiny_tokenizer).initial()
    assert not state.allows(tiny_tokenizer.bos_token_id)
    assert state.allows(tiny_tokenizer.eos_token_id)


def test_a_text_is_judged_once(tiny_tokenizer):
    asked = []
    constraint = Predicate(
        lambda text: not asked.append(text), lambda text: bool(text), tiny_tokenizer
    )
    for _ in range(3):
        state = constraint.initial()
        for token in tiny_tokenizer.encode("the cat"):
            assert state.allows(token)
            state = state.advance(token)
    assert len(asked) == len(set(asked))


def test_extend_splits_bytes_into_characters_and_a_rest():
    assert extend(b"", "aé".encode()) == ("aé", b"")
    assert extend(b"", b"a\xe6\x9d") == ("a", b"\xe6\x9d")
    assert extend(b"\xe6\x9d", b"\xb1b") == ("東b", b"")
    assert extend(b"\xe6", b"a") is None
    assert extend(b"", b"\xc0") is None
