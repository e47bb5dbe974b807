"""Every metric of tokenizers: a finite number of a corpus, whatever its order."""

import math

import pytest

from role_cases import cases
from tokenry.core.errors import InputError
from tokenry.text.metrics.base import tokenizer_metric
from tokenry.text.tokenizers.single_bytes import SingleBytes

EACH = pytest.mark.parametrize("made", cases(tokenizer_metric))
TEXTS = ["the cat sat on the mat", "there is a theory", "naïve café, 東京 🙂", "", "x = f(a, b)\n"]


@EACH
def test_a_number_of_the_corpus_in_any_order(made, tiny_tokenizer):
    metric = made()
    value = metric(tiny_tokenizer, TEXTS)
    assert math.isfinite(value)
    assert metric(tiny_tokenizer, TEXTS[::-1]) == pytest.approx(value)
    assert made()(tiny_tokenizer, tuple(TEXTS)) == value
    assert metric.unit
    assert metric.better in ("higher", "lower", "")


@EACH
def test_tokens_around_a_text_do_not_count(made, tiny_tokenizer):
    class Framed:
        def __call__(self, texts, add_special_tokens=True):
            found = tiny_tokenizer(texts)["input_ids"]
            return {"input_ids": [[0, *ids, 1] if add_special_tokens else ids for ids in found]}

        def __getattr__(self, name):
            return getattr(tiny_tokenizer, name)

    assert made()(Framed(), TEXTS) == made()(tiny_tokenizer, TEXTS)


@EACH
def test_the_tokenizer_is_left_as_it_was(made, tiny_tokenizer):
    before = tiny_tokenizer(TEXTS[0])["input_ids"], len(tiny_tokenizer)
    made()(tiny_tokenizer, TEXTS)
    assert (tiny_tokenizer(TEXTS[0])["input_ids"], len(tiny_tokenizer)) == before


@EACH
def test_a_corpus_of_nothing_is_refused(made, tiny_tokenizer):
    for texts in ([], ["", ""]):
        with pytest.raises(InputError):
            made()(tiny_tokenizer, texts)


@EACH
def test_it_says_which_end_is_better(made, tiny_tokenizer):
    """A vocabulary that spells everything out is at the worse one."""
    metric, letters = made(), SingleBytes().wrap(tiny_tokenizer)
    coarse, fine = metric(tiny_tokenizer, TEXTS), metric(letters, TEXTS)
    if metric.better:
        assert (coarse > fine) == (metric.better == "higher")
