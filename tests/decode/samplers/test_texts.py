"""Log-probabilities of whole texts against enumeration, in any batch."""

import math

import pytest
import torch

from tokenry.decode.constraints.base import Anything
from tokenry.decode.samplers.request import Request
from tokenry.decode.samplers.smc import run_smc
from tokenry.decode.samplers.texts import joined, text_logprobs
from tokenry.model.decoding import DecodingState
from tokenry.tasks.worlds.toy_lm import ToyLM, ToyState

MODEL = ToyLM(vocab_size=4, order=2, eos=0, seed=1)


def asked(eos=(0,), **options):
    start = ToyState.start(MODEL, torch.zeros(1, 0, dtype=torch.long))
    return Request(start, Anything(4, eos), max_new_tokens=5, **options)


@pytest.mark.parametrize("rows", [1, 3, 1000])
def test_is_the_enumerated_probability_in_any_batch_and_order(rows):
    exact = MODEL.texts(5)
    texts = list(exact)
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(rows)).tolist()
    mixed = [texts[place] for place in order]
    found = text_logprobs(asked(), mixed, [True] * len(mixed), rows)
    truth = torch.tensor([exact[text] for text in mixed], dtype=torch.float64)
    torch.testing.assert_close(found, truth, rtol=0, atol=1e-5)


def test_an_end_counts_only_where_it_was_reached_and_as_any_end_token():
    text = (1, 2)
    steps = [MODEL.logits(text[:n]).double().log_softmax(-1) for n in range(3)]
    open_end = float(steps[0][1] + steps[1][2])
    both = open_end + float(steps[2][[0, 3]].logsumexp(0))
    found = text_logprobs(asked(eos=(0, 3)), [text, text, ()], [False, True, False])
    assert found.tolist() == pytest.approx([open_end, both, 0.0], abs=1e-5)
    assert text_logprobs(asked(), [], []).shape == (0,)


def test_temperature_and_processors_belong_to_the_model():
    def flip(ids, scores):
        assert len(ids) == len(scores)
        return -scores

    found = text_logprobs(asked(temperature=0.7, processors=(flip,)), [(1, 3)], [True])
    places = zip([(), (1,), (1, 3)], [1, 3, 0], strict=True)
    truth = sum(float((-MODEL.logits(t) / 0.7).log_softmax(-1)[token]) for t, token in places)
    assert float(found) == pytest.approx(truth, abs=1e-5)


def test_on_a_transformer(tiny_model):
    """Row by row from the whole sequence's logits."""
    prompt, texts, ended = [5, 9, 3], [[7], [8, 2, 40], [], [11, 12]], [True, False, True, True]
    state = DecodingState.start(tiny_model, torch.tensor([prompt]))
    found = text_logprobs(Request(state, Anything(64, [1, 6]), tuple(prompt)), texts, ended)
    for text, done, value in zip(texts, ended, found.tolist(), strict=True):
        with torch.no_grad():
            logits = tiny_model(torch.tensor([prompt + text])).logits[0, len(prompt) - 1 :]
        logprobs = logits.double().log_softmax(-1)
        truth = sum(float(logprobs[place, token]) for place, token in enumerate(text))
        truth += float(logprobs[len(text), [1, 6]].logsumexp(0)) if done else 0.0
        assert value == pytest.approx(truth, abs=1e-3)
    assert state.rows == 1
    assert state.length == 3


def test_joined_runs_are_one_sample():
    parts = [run_smc(asked(), count, "mask", 0.0) for count in (3, 5)]
    whole = joined(parts)
    assert len(whole.ids) == len(whole.finished) == 8
    assert torch.equal(whole.log_weights, torch.cat([part.log_weights for part in parts]))
    assert math.exp(whole.log_evidence) == pytest.approx(float(whole.log_weights.exp().mean()))
    assert whole.tokens == sum(part.tokens for part in parts)
