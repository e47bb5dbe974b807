"""Mean likelihood by token: the model's own numbers, whatever stands beside a text."""

import pytest
import torch

from tokenry.core.errors import InputError
from tokenry.measure.likelihood import LikelihoodScorer

TEXTS = ["the cat sat on the mat", "a theory", "def add(a, b):\n    return a + b"]


def test_it_is_the_mean_of_the_models_own_log_probabilities(tiny_llama_text, tiny_tokenizer):
    found = LikelihoodScorer(tiny_llama_text, tiny_tokenizer)(TEXTS)
    for text, value in zip(TEXTS, found, strict=True):
        ids = tiny_tokenizer(text, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logprob = tiny_llama_text(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        own = logprob.gather(1, torch.tensor(ids[1:])[:, None])
        assert value == pytest.approx(float(own.mean()), abs=1e-5)


def test_a_batch_is_its_texts_one_by_one_in_any_order(tiny_llama_text, tiny_tokenizer):
    scorer = LikelihoodScorer(tiny_llama_text, tiny_tokenizer)
    together = scorer(TEXTS)
    assert [scorer([text])[0] for text in TEXTS] == pytest.approx(together, abs=1e-5)
    assert scorer(TEXTS[::-1])[::-1] == pytest.approx(together, abs=1e-5)
    assert scorer([]) == []


def test_a_text_of_one_token_has_no_likelihood(tiny_llama_text, tiny_tokenizer):
    with pytest.raises(InputError, match="'t' has no token"):
        LikelihoodScorer(tiny_llama_text, tiny_tokenizer)(["the cat", "t"])
