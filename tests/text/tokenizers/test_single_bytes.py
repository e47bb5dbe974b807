import pytest

from tokenry.core.errors import VocabularyError
from tokenry.text.tokenizers.single_bytes import SingleBytes
from tokenry.text.vocabulary import token_bytes


def test_every_token_is_one_byte_but_the_special_ones(tiny_tokenizer):
    ids = SingleBytes().wrap(tiny_tokenizer)("the é</s> cat")["input_ids"]
    spelled = token_bytes(tiny_tokenizer)
    before, after = ([bytes([b]) for b in text.encode()] for text in ("the é", " cat"))
    assert [spelled[v] for v in ids] == [*before, b"", *after]
    assert ids[6] == tiny_tokenizer.eos_token_id


def test_a_vocabulary_without_the_bytes_is_refused():
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE({"a": 0, "b": 1, "bc": 2, "d": 3}, []))
    backend.decoder = decoders.ByteLevel()
    with pytest.raises(VocabularyError, match="b'c' alone"):
        SingleBytes().wrap(PreTrainedTokenizerFast(tokenizer_object=backend))
