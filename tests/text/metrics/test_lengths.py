import pytest

from tokenry.core.errors import InputError
from tokenry.text.metrics.lengths import BytesPerToken, Fertility
from tokenry.text.tokenizers.single_bytes import SingleBytes


def test_bytes_of_the_corpus_over_its_tokens(tiny_tokenizer):
    texts = ["the cat", "é東"]
    tokens = sum(len(tiny_tokenizer(text)["input_ids"]) for text in texts)
    assert BytesPerToken()(tiny_tokenizer, texts) == (7 + 5) / tokens
    assert BytesPerToken()(SingleBytes().wrap(tiny_tokenizer), texts) == 1.0


def test_fertility_is_tokens_over_words_of_the_corpus_not_a_mean_of_texts(tiny_tokenizer):
    letters = SingleBytes().wrap(tiny_tokenizer)
    assert Fertility()(letters, ["ab cd  e"]) == 8 / 3
    assert Fertility()(letters, ["ab cd  e", "abcdefgh"]) == 16 / 4
    with pytest.raises(InputError, match="no word"):
        Fertility()(letters, [" \n"])
