"""Measures of word filters: against a renormalised pass by hand, and words counted by hand."""

import math

import pytest
import torch

from tokenry.core.errors import ConstraintError
from tokenry.decode.constraints.words import WordConstraint
from tokenry.decode.steering.word_filters import Length, WithoutLetters
from tokenry.measure.word_filters import broken_share, filtered_perplexity


def test_perplexity_of_the_filtered_model_is_renormalised_over_what_is_allowed(
    tiny_llama_text, tiny_tokenizer
):
    constraint = WordConstraint(WithoutLetters("e"), tiny_tokenizer, wordless=True)
    ids = tiny_tokenizer("a cat sat on a mat")["input_ids"]
    plain, filtered = filtered_perplexity(tiny_llama_text, ids, constraint)
    with torch.no_grad():
        logprob = tiny_llama_text(torch.tensor([ids])).logits[0].log_softmax(-1)
    total, kept, state = 0.0, 0.0, constraint.initial()
    for at, token in enumerate(ids[:-1]):
        state = state.advance(token)
        mass = float(logprob[at].exp()[state.mask()].sum())
        total -= float(logprob[at, ids[at + 1]])
        kept -= float(logprob[at, ids[at + 1]]) - math.log(mass)
    assert plain == pytest.approx(math.exp(total / (len(ids) - 1)), rel=1e-4)
    assert filtered == pytest.approx(math.exp(kept / (len(ids) - 1)), rel=1e-4)
    assert filtered < plain
    with pytest.raises(ConstraintError):
        filtered_perplexity(tiny_llama_text, tiny_tokenizer("the end")["input_ids"], constraint)


def test_the_last_word_of_a_text_does_not_count(tiny_tokenizer):
    constraint = WordConstraint(Length(3, 5), tiny_tokenizer, wordless=True)
    assert broken_share(constraint, ["cat dogs a horses end", "the extraordinary"]) == 2 / 5
    assert broken_share(constraint, ["extraordinary"]) == 0.0
