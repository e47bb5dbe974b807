"""Enumerated distributions: the target against the toy's own, masking and a trie by hand."""

import math

import pytest
import torch

from tokenry.decode.samplers.samples import Samples
from tokenry.decode.samplers.smc import MaskedTexts
from tokenry.lab.enumeration import (
    TOY_LIMIT,
    AcceptedTexts,
    PromptedModel,
    odd_sum_distance,
    relative_entropy,
    weighted_texts,
)
from tokenry.lab.token_rule import OddSum, TokenRule
from tokenry.lab.toy_model import toy_model
from tokenry.tasks.worlds.toy_lm import ToyLM, odd_sum, total_variation


class Two:
    """Token 0 ends; behind nothing 1 and 2 are likely, behind 1 the end is rare."""

    def logits(self, text):
        rows = {(): [0.2, 0.4, 0.4], (1,): [0.1, 0.45, 0.45], (2,): [0.5, 0.25, 0.25]}
        return torch.tensor(rows[tuple(text)], dtype=torch.float64).log()


def test_exact_futures_give_the_models_own_conditional_distribution():
    model = ToyLM(vocab_size=4, order=2, seed=3)
    accepted = AcceptedTexts.of(model, OddSum(), TOY_LIMIT)
    truth, log_z = model.conditional(odd_sum, TOY_LIMIT)
    exact = accepted.exact_futures()
    assert exact.log_bound == pytest.approx(log_z)
    target = accepted.distribution(exact)
    assert target.keys() == truth.keys()
    assert total_variation(target, truth) == pytest.approx(0.0, abs=1e-6)


def test_masking_and_a_trie_by_hand():
    one = TokenRule(lambda text: len(text) == 1, lambda text: len(text) == 1, vocab_size=3)
    accepted = AcceptedTexts.of(Two(), one, limit=2)
    assert accepted.distribution() == pytest.approx({(1,): 0.5, (2,): 0.5})
    exact = accepted.exact_futures()
    assert exact.bound == pytest.approx(0.4 * 0.1 + 0.4 * 0.5)
    target = accepted.distribution(exact)
    assert target == pytest.approx({(1,): 1 / 6, (2,): 5 / 6})
    entropy = 1 / 6 * math.log(1 / 3) + 5 / 6 * math.log(5 / 3)
    assert relative_entropy(target, accepted.distribution()) == pytest.approx(entropy)


def test_texts_add_up_their_normalised_weights():
    weights = torch.tensor([1.0, 3.0, 0.0, 4.0], dtype=torch.float64).log()
    samples = Samples([[1], [2], [3], [1]], weights, 0.0, [True] * 4, 0, 0, 0, 0, 0, 0.0)
    assert weighted_texts(samples) == pytest.approx({(1,): 5 / 8, (2,): 3 / 8})


def test_masking_stays_away_from_the_target():
    model = ToyLM(seed=1)
    accepted = AcceptedTexts.of(model, OddSum(), TOY_LIMIT)
    truth, _ = model.conditional(odd_sum, TOY_LIMIT)
    exact = total_variation(accepted.distribution(), truth)
    assert odd_sum_distance(MaskedTexts(), model, 4000, seed=0) == pytest.approx(exact, abs=0.03)


def test_a_prompted_model_reads_the_text_behind_its_prompt_once():
    model = toy_model(7, 8, seed=0, width=16, layers=1).eval()
    prompted = PromptedModel(model, [1, 2])
    with torch.no_grad():
        expected = model(torch.tensor([[1, 2, 3]])).logits[0, -1]
    assert torch.equal(prompted.logits([3]), expected)
    assert prompted.logits((3,)) is prompted.logits([3])
