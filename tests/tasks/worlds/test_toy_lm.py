"""The toy model's enumeration against a second way of counting."""

import itertools
import math

import torch

from tokenry.tasks.worlds.toy_lm import ToyLM, ToyState, may_get_odd, odd_sum, total_variation

MODEL = ToyLM(vocab_size=3, order=2, eos=0, seed=1)


def test_texts_and_the_mass_beyond_the_limit_make_one():
    texts = MODEL.texts(4)
    assert len(texts) == sum(2**length for length in range(4))

    def logprob(text):
        return sum(
            float(MODEL.logits(text[:at]).double().log_softmax(0)[token])
            for at, token in enumerate(text)
        )

    for text, value in texts.items():
        assert math.isclose(value, logprob((*text, 0)), abs_tol=1e-9)
    cut = sum(math.exp(logprob(text)) for text in itertools.product([1, 2], repeat=4))
    assert math.isclose(sum(map(math.exp, texts.values())) + cut, 1.0)


def test_conditional_renormalises_the_accepted_texts():
    truth, log_evidence = MODEL.conditional(lambda text: len(text) == 1, 3)
    texts = MODEL.texts(3)
    assert set(truth) == {(1,), (2,)}
    assert math.isclose(sum(truth.values()), 1.0)
    assert math.isclose(truth[1,], math.exp(texts[1,] - log_evidence))
    assert MODEL.conditional(lambda _: False, 3) == ({}, -math.inf)


def test_a_prompt_changes_the_texts():
    assert MODEL.texts(2, prompt=[1]) != MODEL.texts(2)


def test_the_state_keeps_forks_apart():
    state = ToyState.start(MODEL, torch.tensor([[1]])).fork(2)
    state.append(torch.tensor([1, 2]))
    assert torch.equal(state.logits, torch.stack([MODEL.logits([1, 1]), MODEL.logits([1, 2])]))
    state.select(torch.tensor([1, 1, 0]))
    state.append(torch.tensor([1, 2, 2]))
    assert state.rows == [[1, 2, 1], [1, 2, 2], [1, 1, 2]]
    assert state.length == 3


def test_total_variation_of_disjoint_distributions_is_one():
    assert total_variation({(1,): 1.0}, {(2,): 1.0}) == 1.0
    assert total_variation({(1,): 0.5, (2,): 0.5}, {(1,): 1.0}) == 0.5


def test_the_odd_sums_of_three_tokens_are_these():
    texts = itertools.product(range(1, 4), repeat=2)
    assert {text for text in texts if odd_sum(text)} == {(1, 2), (2, 1), (2, 3), (3, 2)}
    assert odd_sum((3, 1, 1))
    assert not odd_sum((3, 1, 3))
    assert not odd_sum((1, 3, 1))
    assert may_get_odd((2, 2))
    assert not may_get_odd((1, 3))
