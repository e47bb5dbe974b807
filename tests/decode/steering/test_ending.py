"""Ending: where the text is complete it ends, everywhere else the model is itself."""

import math

import pytest
import torch

from tokenry.decode.constraints.grammar import Grammar
from tokenry.decode.generate import generate
from tokenry.decode.samplers.request import Request
from tokenry.decode.samplers.smc import SMC
from tokenry.decode.steering.ending import Ending
from tokenry.lab.token_rule import OddSum
from tokenry.tasks.worlds.toy_lm import ToyLM, ToyState, odd_sum


def test_only_complete_texts_are_made_to_end():
    ending = Ending(OddSum(), [2, 2])
    ids = torch.tensor([[2, 2, 1], [2, 2, 2], [2, 2, 3]])
    scores = torch.randn(3, 4)
    found = ending(ids, scores)
    assert found[1].equal(scores[1])
    for row in (0, 2):
        assert found[row].softmax(-1).tolist() == [1.0, 0.0, 0.0, 0.0]


def test_a_refused_text_is_left_alone():
    ids, scores = torch.tensor([[3, 3]]), torch.randn(1, 4)
    assert Ending(OddSum(), [])(ids, scores).equal(scores)


def test_the_evidence_is_that_of_the_model_that_ends():
    """By enumeration: a text counts with the probability of its tokens, its end with one."""
    model, limit = ToyLM(vocab_size=4, order=2, eos=0, seed=2), 5

    def mass(text, logprob):
        if odd_sum(text):
            return math.exp(logprob)
        if len(text) + 1 >= limit or text.count(3) > 1 or text[:2] == (1, 3):
            return 0.0
        logprobs = model.logits(text).double().log_softmax(-1).tolist()
        return sum(mass((*text, token), logprob + logprobs[token]) for token in (1, 2, 3))

    start = ToyState.start(model, torch.zeros(1, 0, dtype=torch.long))
    request = Request(
        start, OddSum(), max_new_tokens=limit, processors=[Ending(OddSum(), [])],
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    found = SMC("mask", ess_threshold=0.0)(request, 4000)
    # weights lie in [0, 1]: off by more than 0.05 with probability 2 exp(-2 4000 0.05²) = 4e-9
    assert math.exp(found.log_evidence) == pytest.approx(mass((), 0.0), abs=0.05)


def test_a_real_text_ends_at_once(tiny_llama_text, tiny_tokenizer):
    digits = Grammar.regex("[0-9]+", tiny_tokenizer)
    ids = tiny_tokenizer.encode("the cat")
    found = generate(
        (tiny_llama_text, tiny_tokenizer),
        ids,
        digits,
        "mask",
        4,
        8,
        processors=[Ending(digits, ids)],
    )
    assert found.finished == [True] * 4
    assert all(len(text) == 1 for text in found.ids)
