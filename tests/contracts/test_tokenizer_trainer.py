"""Every trainer of tokenizers: the same texts, the same vocabulary, of at most the asked size."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from role_cases import cases
from tokenry.core.errors import InputError
from tokenry.text.tokenizers.base import tokenizer_trainer

TEXTS = ["the cat sat on the mat", "there is a theory that they gather", "naïve café, 東京 🙂"] * 3


@pytest.fixture(scope="module", params=cases(tokenizer_trainer))
def example(request):
    return request.param()


@pytest.fixture(scope="module")
def trained(example):
    return example.trainer.train(TEXTS, example.least + 40)


def test_the_vocabulary_is_no_larger_than_asked_and_grows_with_the_size(example, trained):
    sizes = [len(example.trainer.train(TEXTS, example.least + n)) for n in (0, 10, 40)]
    assert sizes[0] <= example.least
    assert sizes[1] <= example.least + 10
    assert sizes[2] == len(trained) <= example.least + 40
    assert sizes[0] < sizes[1] < sizes[2]


def test_the_same_texts_give_the_same_tokenizer(example, trained):
    again = example.trainer.train(iter(TEXTS), example.least + 40)
    assert again.get_vocab() == trained.get_vocab()
    assert again(TEXTS[2])["input_ids"] == trained(TEXTS[2])["input_ids"]


@given(text=st.text(max_size=40))
def test_any_text_comes_back_if_it_says_so(example, trained, text):
    ids = trained(text)["input_ids"]
    assert all(0 <= v < len(trained) for v in ids)
    if example.trainer.lossless:
        assert trained.decode(ids) == text


def test_a_larger_vocabulary_writes_the_training_texts_in_fewer_tokens(example, trained):
    small = example.trainer.train(TEXTS, example.least)
    counts = [sum(len(t(text)["input_ids"]) for text in TEXTS) for t in (small, trained)]
    assert counts[1] < counts[0]


def test_it_survives_saving(trained, tmp_path):
    from transformers import AutoTokenizer

    trained.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for text in (*TEXTS, "  two  spaces \n"):
        assert again(text)["input_ids"] == trained(text)["input_ids"]
        assert again.decode(again(text)["input_ids"]) == trained.decode(trained(text)["input_ids"])


def test_too_small_a_size_and_no_texts_are_refused(example):
    with pytest.raises(InputError, match="size"):
        example.trainer.train(TEXTS, example.least - 1)
    with pytest.raises(InputError):
        example.trainer.train([""], example.least)
