"""The bytes of tokens, for both families of tokenizers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenry.core.errors import VocabularyError
from tokenry.text.vocabulary import byte_alphabet, is_byte_level, token_bytes


def test_the_byte_alphabet_is_a_bijection_that_keeps_printable_ascii():
    alphabet = byte_alphabet()
    assert sorted(alphabet.values()) == list(range(256))
    assert all(alphabet[chr(code)] == code for code in range(0x21, 0x7F))
    assert alphabet["Ġ"] == 0x20
    assert alphabet["Ċ"] == 0x0A


@given(st.text(max_size=40))
def test_token_bytes_spell_the_text(tiny_tokenizer, text):
    pieces = token_bytes(tiny_tokenizer)
    ids = tiny_tokenizer(text, add_special_tokens=False)["input_ids"]
    assert b"".join(pieces[i] for i in ids) == text.encode()


def test_special_tokens_have_no_bytes(tiny_tokenizer):
    pieces = token_bytes(tiny_tokenizer)
    assert pieces[tiny_tokenizer.bos_token_id] == pieces[tiny_tokenizer.eos_token_id] == b""


@pytest.fixture(scope="module")
def marked_tokenizer():
    """A SentencePiece-like BPE with byte fallback."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", *(f"<0x{b:02X}>" for b in range(256)), "▁", *"abcde", "▁a", "ab"]
    merges = [("▁", "a"), ("a", "b")]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    backend = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


@given(st.text(max_size=20))
def test_sentencepiece_like_tokens_spell_the_text_too(marked_tokenizer, text):
    text = text.replace("▁", "")
    pieces = token_bytes(marked_tokenizer)
    ids = marked_tokenizer(text, add_special_tokens=False)["input_ids"]
    assert b"".join(pieces[i] for i in ids) == text.encode()
    assert not is_byte_level(marked_tokenizer)


def test_other_tokenizers_are_refused():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    with pytest.raises(VocabularyError, match="neither byte-level"):
        token_bytes(PreTrainedTokenizerFast(tokenizer_object=backend))


@pytest.mark.model
@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_real_vocabularies_spell_real_text(name, request):
    tokenizer = request.getfixturevalue(name).tokenizer
    text = "def f(x):\n\treturn x**2  # naïve 東京 🙂"
    pieces = token_bytes(tokenizer)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert b"".join(pieces[i] for i in ids) == text.encode()
