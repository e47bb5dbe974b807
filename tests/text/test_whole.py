"""Texts of tokens that end inside a character."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenry.text.whole import open_bytes, whole_text

TEXT = "naïve café, 東京 and 🙂 \N{REPLACEMENT CHARACTER}"


def spelled(tokenizer, data):
    """One token for every byte."""
    from tokenry.text.vocabulary import byte_alphabet

    character = {byte: letter for letter, byte in byte_alphabet().items()}
    return [tokenizer.convert_tokens_to_ids(character[byte]) for byte in data]


@given(st.text(alphabet=TEXT, max_size=8), st.integers(0, 3))
def test_a_text_ends_with_its_last_whole_character(tiny_tokenizer, text, missing):
    ids = spelled(tiny_tokenizer, text.encode())
    ids = ids[: len(ids) - missing]
    expected = text.encode()[: len(ids)].decode(errors="ignore")
    assert whole_text(tiny_tokenizer, ids) == expected
    assert expected.encode() + open_bytes(tiny_tokenizer, ids) == text.encode()[: len(ids)]


def test_ends_of_texts_count_for_nothing_and_broken_bytes_stay(tiny_tokenizer):
    ids = spelled(tiny_tokenizer, b"a\xe6\x9d")
    assert whole_text(tiny_tokenizer, [*ids, tiny_tokenizer.eos_token_id]) == "a"
    broken = spelled(tiny_tokenizer, b"a\xe6\x9db\xff")
    assert whole_text(tiny_tokenizer, broken) == "a\ufffdb\ufffd"


@pytest.mark.model
def test_byte_tokens_of_sentencepiece_wait_too(gemma3):
    _, tokenizer = gemma3
    ids = [tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in "🙂".encode()]
    begun = [*tokenizer("a", add_special_tokens=False)["input_ids"], *ids]
    assert [whole_text(tokenizer, begun[:count]) for count in range(1, 6)] == [*["a"] * 4, "a🙂"]
