"""Beam search against enumeration, a plain reference, and transformers' own."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenry.core.errors import InputError
from tokenry.decode.constraints.base import Anything
from tokenry.decode.constraints.contains import Contains
from tokenry.decode.constraints.length import Length
from tokenry.decode.constraints.stop import Stop
from tokenry.decode.samplers.beam import BeamSearch
from tokenry.decode.samplers.request import Request
from tokenry.lab.token_rule import OddSum
from tokenry.model.decoding import DecodingState
from tokenry.model.hidden_decoding import HiddenDecoding
from tokenry.tasks.worlds.toy_lm import ToyLM, ToyState, odd_sum

V, LIMIT = 4, 5


def request(model, constraint=None, limit=LIMIT, **options):
    start = ToyState.start(model, torch.zeros(1, 0, dtype=torch.long))
    return Request(
        start, constraint or Anything(model.vocab_size, [0]), max_new_tokens=limit, **options
    )


def exact_attribute(model, accept, limit=LIMIT):
    """log P(accept | prefix) by enumeration; the prefix may hold the end."""
    texts = model.texts(limit)

    def logprob(prefix):
        if prefix[-1] == 0:
            return 0.0 if accept(tuple(prefix[:-1])) else -math.inf
        inside = [(text, p) for text, p in texts.items() if text[: len(prefix)] == tuple(prefix)]
        good = math.fsum(math.exp(p) for text, p in inside if accept(text))
        # the prefix's own probability, not the share that ends within the limit
        own = sum(
            float(model.logits(prefix[:at]).double().log_softmax(-1)[token])
            for at, token in enumerate(prefix)
        )
        return min(0.0, math.log(good) - own) if good else -math.inf

    return lambda prefixes: [logprob(prefix) for prefix in prefixes]


def plain_beam_search(model, beams, limit):
    """[(log p, text)] of all ended texts that a textbook beam search meets, best first."""
    living, ended = [(0.0, ())], []
    for _ in range(limit):
        grown = []
        for logprob, text in living:
            step = model.logits(text).double().log_softmax(-1).tolist()
            ended.append((logprob + step[0], text))
            grown += [(logprob + step[token], (*text, token)) for token in range(1, len(step))]
        living = sorted(grown, reverse=True)[:beams]
    return sorted(ended, reverse=True)


@pytest.mark.parametrize("beams", [1, 2, 3, 7])
@pytest.mark.parametrize("seed", range(4))
def test_without_an_attribute_it_is_beam_search(seed, beams):
    model = ToyLM(vocab_size=V, seed=seed)
    expected = plain_beam_search(model, beams, LIMIT)[:beams]
    for attribute in (None, lambda prefixes: [0.0] * len(prefixes)):
        found = BeamSearch(attribute, candidates=1)(request(model), beams)
        assert [tuple(ids) for ids in found.ids] == [text for _, text in expected]
        torch.testing.assert_close(
            found.log_weights, torch.tensor([value for value, _ in expected]).double(), atol=1e-5,
            rtol=0,
        )  # fmt: skip
        assert all(found.finished)


@pytest.mark.parametrize("accept", [odd_sum, lambda t: len(t) == 3, lambda t: 2 not in t and t])
@pytest.mark.parametrize("seed", range(3))
def test_a_full_beam_with_the_exact_attribute_finds_the_conditional_mode(seed, accept):
    model = ToyLM(vocab_size=V, seed=seed)
    good = {text: p for text, p in model.texts(LIMIT).items() if accept(text)}
    mode = max(good, key=good.__getitem__)
    sampler = BeamSearch(exact_attribute(model, accept), beams=V**LIMIT)
    found = sampler(request(model), 3)
    assert tuple(found.ids[0]) == mode
    assert float(found.log_weights[0]) == pytest.approx(good[mode], abs=1e-5)
    assert all(accept(tuple(ids)) for ids in found.ids)
    best = sorted(good.values(), reverse=True)[:3]
    assert found.log_weights.tolist() == pytest.approx(best, abs=1e-5)
    assert found.log_evidence == pytest.approx(math.log(sum(map(math.exp, best))), abs=1e-5)


def test_the_attribute_guides_a_narrow_beam():
    """Over many models, a beam of one with the exact q scores above the same beam under a mask
    that only knows what is impossible."""
    guided, masked = [], []
    for seed in range(20):
        model = ToyLM(vocab_size=V, seed=seed, scale=2.5)
        exact = exact_attribute(model, odd_sum)
        for attribute, into in ((exact, guided), (None, masked)):
            found = BeamSearch(attribute)(request(model, OddSum()), 1)
            into.append(float(found.log_weights[0]))
    reached = [(a, b) for a, b in zip(guided, masked, strict=True) if b > -math.inf]
    assert sum(a > -math.inf for a in guided) == 20
    assert sum(a for a, _ in reached) > sum(b for _, b in reached) + 1


def test_the_constraint_holds_and_ends_are_demanded():
    model = ToyLM(vocab_size=V, seed=1)
    found = BeamSearch(beams=50)(request(model, Length(3, 3, range(V), [0])), 4)
    exact = sorted((p for t, p in model.texts(LIMIT).items() if len(t) == 3), reverse=True)[:4]
    assert found.log_weights.tolist() == pytest.approx(exact, abs=1e-5)


def test_prefixes_that_run_into_a_dead_end_take_no_beam():
    """Stopping and containing can contradict each other: a beam of one goes round it."""
    pieces = [b"", b"a", b"b", b"ab"]
    both = Stop(["a"], pieces, eos=[0], overshoot=True) & Contains(["bb"], pieces, eos=[0])

    class PrefersA(ToyLM):
        def logits(self, text):
            return torch.tensor([0.0, 3.0, 2.0, 1.0])

    for beams in (1, 2):
        found = BeamSearch()(request(PrefersA(vocab_size=V, order=0), both), beams)
        assert found.ids[0] == [2, 2, 1]
        assert all(found.finished)


def test_length_normalisation_ranks_by_the_normalised_score():
    model = ToyLM(vocab_size=V, seed=2)
    found = BeamSearch(beams=V**LIMIT, length_penalty=1.0)(request(model), 5)
    texts = model.texts(LIMIT)
    ranked = sorted(texts, key=lambda text: -texts[text] / (len(text) + 1))[:5]
    assert [tuple(ids) for ids in found.ids] == ranked
    assert found.log_weights.tolist() == pytest.approx([texts[t] for t in ranked], abs=1e-5)


def test_cut_off_texts_count_only_where_the_end_is_not_demanded():
    model = ToyLM(vocab_size=V, seed=3)
    never = Length(9, None, range(V), [0])
    cut = BeamSearch()(request(model, never, limit=3), 4)
    assert bool((cut.log_weights == -math.inf).all())
    kept = BeamSearch(beams=64)(request(model, never, limit=3, must_end=False), 1)
    best = max(
        sum(float(model.logits(text[:at]).log_softmax(-1)[token]) for at, token in enumerate(text))
        for text in itertools.product((1, 2, 3), repeat=3)
    )
    assert float(kept.log_weights[0]) == pytest.approx(best, abs=1e-5)
    assert kept.finished == [False]


@given(st.integers(0, 200), st.integers(1, 6), st.integers(1, 4))
def test_the_search_ends_early_only_when_nothing_can_be_gained(seed, beams, wanted):
    """The same pool as a search that never ends early (the reference runs to the limit)."""
    model = ToyLM(vocab_size=3, order=1, seed=seed, scale=3.0)
    found = BeamSearch(beams=beams)(request(model, Anything(3, [0]), limit=7), wanted)
    expected = plain_beam_search(model, beams, 7)[:wanted]
    assert found.log_weights.tolist() == pytest.approx([p for p, _ in expected], abs=1e-4)


def test_temperature_and_processors_belong_to_the_model():
    model = ToyLM(vocab_size=V, seed=4)
    banned = torch.tensor([0.0, 0.0, -math.inf, 0.0])
    asked = request(model, temperature=0.5, processors=[lambda ids, logits: logits + banned[None]])
    found = BeamSearch(beams=400)(asked, 1)
    text = found.ids[0]
    expected = sum(
        float(((model.logits(text[:at]) + banned) / 0.5).log_softmax(-1)[token])
        for at, token in enumerate([*text, 0])
    )
    assert 2 not in text
    assert float(found.log_weights[0]) == pytest.approx(expected, abs=1e-4)


def test_on_a_transformer_it_finds_no_less_than_transformers_beam_search(tiny_llama):
    prompt = torch.tensor([[5, 9, 13]])
    for beams in (1, 3, 6):
        theirs = tiny_llama.generate(
            prompt, num_beams=beams, max_new_tokens=6, do_sample=False, length_penalty=0.0,
            early_stopping="never", num_return_sequences=beams, eos_token_id=[1, 2, 3, 4],
            pad_token_id=0,
        )[:, 3:]  # fmt: skip
        state = DecodingState.start(tiny_llama, prompt)
        eos = [1, 2, 3, 4]
        asked = Request(state, Anything(64, eos), (5, 9, 13), max_new_tokens=6, must_end=False)
        found = BeamSearch()(asked, beams)
        ended = [row[: next(i for i, t in enumerate(row) if t in eos)]
                 for row in theirs.tolist() if set(row) & set(eos)]  # fmt: skip
        for ids in ended:
            whole = torch.tensor([[5, 9, 13, *ids]])
            logprobs = tiny_llama(whole).logits[0, 2:].double().log_softmax(-1)
            value = sum(logprobs[at, token].item() for at, token in enumerate(ids))
            value += logprobs[len(ids), eos].logsumexp(0).item()
            if found.ids.count(ids):
                own = float(found.log_weights[found.ids.index(ids)])
                assert own == pytest.approx(value, abs=1e-3)
            else:
                assert float(found.log_weights[-1]) >= value - 1e-3


def test_hidden_states_reach_the_attribute(tiny_llama):
    seen = []

    class Watching:
        needs_hidden = True

        def __call__(self, texts, tokens, hidden):
            for text, state in zip(texts, hidden, strict=True):
                ids = torch.tensor([[7, 8, *text]])
                whole = tiny_llama(ids, output_hidden_states=True).hidden_states[-1][0, -1]
                torch.testing.assert_close(state, whole, rtol=1e-4, atol=1e-4)
                seen.append(len(text))
            return torch.zeros(tokens.shape)

    asked = Request(
        DecodingState.start(tiny_llama, torch.tensor([[7, 8]])),
        Length(3, 3, range(64), [1]),
        (7, 8),
        max_new_tokens=4,
        loaded=(tiny_llama, None),
    )
    with_hidden = BeamSearch(Watching())(asked, 3)
    assert set(seen) == {0, 1, 2, 3}
    assert with_hidden.ids == BeamSearch()(asked, 3).ids
    with pytest.raises(InputError, match="hidden states"):
        BeamSearch(Watching())(
            Request(asked.decoding, asked.constraint, (7, 8), max_new_tokens=4), 3
        )


def test_hidden_decoding_forks_like_its_parent(tiny_model):
    ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
    state = HiddenDecoding.start(tiny_model, ids)
    twin = state.copy()
    state.select(torch.tensor([1, 0, 1]))
    state.append(torch.tensor([3, 4, 5]))
    for row, text in enumerate([[8, 9, 10, 3], [5, 6, 7, 4], [8, 9, 10, 5]]):
        output = tiny_model(torch.tensor([text]), output_hidden_states=True)
        expected = output.hidden_states[-1][0, -1]
        torch.testing.assert_close(state.hidden[row], expected, rtol=1e-4, atol=1e-4)
    assert twin.hidden.shape == (2, state.hidden.shape[1])


def test_bad_settings_are_refused():
    model = ToyLM(vocab_size=V)
    with pytest.raises(InputError, match="candidates"):
        BeamSearch(candidates=0)
    with pytest.raises(InputError, match="length_penalty"):
        BeamSearch(length_penalty=-1)
    with pytest.raises(InputError, match="at most 0"):
        BeamSearch(lambda prefixes: [0.7] * len(prefixes))(request(model), 2)
    with pytest.raises(ValueError, match="values of log q"):
        BeamSearch(lambda prefixes: [0.0])(request(model), 2)
