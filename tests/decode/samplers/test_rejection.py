"""Rejection: the negative binomial weight by summation, and texts against enumeration."""

import math

import pytest
import torch

from tokenry.core.errors import ConstraintError, InputError
from tokenry.decode.constraints.base import Anything
from tokenry.decode.samplers.rejection import Plain, Rejection, reject
from tokenry.decode.samplers.request import Request
from tokenry.lab.token_rule import OddSum
from tokenry.model.decoding import DecodingState
from tokenry.tasks.worlds.toy_lm import ToyLM, ToyState, odd_sum, total_variation

MODEL = ToyLM(vocab_size=4, order=2, eos=0, seed=2)
LIMIT = 5
TRUTH, LOG_Z = MODEL.conditional(odd_sum, LIMIT)
Z = math.exp(LOG_Z)


def asked(seed=0, constraint=None, **options):
    start = ToyState.start(MODEL, torch.zeros(1, 0, dtype=torch.long))
    options = {"max_new_tokens": LIMIT, **options}
    generator = torch.Generator().manual_seed(seed)
    return Request(start, constraint or OddSum(), generator=generator, **options)


@pytest.mark.parametrize("N", [1, 2, 7])
@pytest.mark.parametrize("z", [0.3, 0.9])
def test_the_weight_is_unbiased_by_summation(N, z):
    """Over T, with a cap on the tries and (as good as) without one."""
    for cap in (N + 3, 400):
        times = range(N + 1, cap + 1)
        reached = {t: math.comb(t - 1, N) * z ** (N + 1) * (1 - z) ** (t - N - 1) for t in times}
        short = {k: math.comb(cap, k) * z**k * (1 - z) ** (cap - k) for k in range(N + 1)}
        assert sum(reached.values()) + sum(short.values()) == pytest.approx(1.0, abs=1e-9)
        mean = sum(p * N / (t - 1) for t, p in reached.items())
        mean += sum(p * k / cap for k, p in short.items())
        assert mean == pytest.approx(z, abs=1e-9)


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_the_weight_says_how_many_tries_there_were(rows):
    """A judge that accepts the 3rd, 4th and 9th valid text of a constraint that accepts all."""
    seen = []

    def judge(texts, ended):
        start = len(seen)
        seen.extend(texts)
        return [start + place + 1 in (3, 4, 9) for place in range(len(texts))]

    samples = reject(asked(constraint=Anything(4, [0]), must_end=False), 2, rows, judge=judge)
    assert (samples.tries, samples.accepted) == (9, 3)
    assert samples.ids == [seen[2], seen[3]]
    assert samples.log_weights.exp().tolist() == pytest.approx([2 / 8] * 2)
    assert samples.acceptance == pytest.approx(2 / 8)


def test_a_cap_on_the_tries_keeps_weights_proper_and_texts_whole():
    def second(texts, ended):
        return [place == 1 for place in range(len(texts))]

    everything = asked(constraint=Anything(4, [0]), must_end=False)
    samples = reject(everything, 3, rows=4, max_trials=4, judge=second)
    assert (samples.tries, samples.accepted) == (4, 1)
    assert samples.log_weights.exp().tolist() == pytest.approx([3 / 4, 0.0, 0.0])
    assert math.exp(samples.log_evidence) == pytest.approx(1 / 4)
    assert samples.acceptance == pytest.approx(1 / 4)


@pytest.mark.parametrize("max_trials", [3, 10_000])
def test_the_evidence_is_unbiased_whatever_the_cap(max_trials):
    """Mean over runs, to six standard errors (2e-9)."""
    found = []
    for seed in range(200):
        try:
            run = Rejection(max_trials=max_trials)(asked(seed), 2)
            found.append(math.exp(run.log_evidence))
        except ConstraintError:
            found.append(0.0)  # nothing accepted: the estimate is 0
    values = torch.tensor(found, dtype=torch.float64)
    error = float(values.std()) / math.sqrt(len(values))
    assert abs(float(values.mean()) - Z) < 6 * error
    assert error < 0.05


def test_texts_are_independent_draws_from_the_conditional():
    """n draws lie within Σ sqrt(p / n) / 2 of it on average; twice that for the fixed seed."""
    samples = Rejection(rows=256, max_trials=100_000)(asked(5), 1000)
    share = {}
    for ids in samples.ids:
        share[tuple(ids)] = share.get(tuple(ids), 0.0) + 1 / 1000
    assert share.keys() <= TRUTH.keys()
    expected = 0.5 * sum(math.sqrt(2 * p / (math.pi * 1000)) for p in TRUTH.values())
    assert total_variation(share, TRUTH) < 2 * expected
    assert math.exp(samples.log_evidence) == pytest.approx(Z, abs=0.06)
    assert samples.log_weights.unique().numel() == 1


def test_a_text_is_given_up_at_the_first_refused_token():
    samples = Rejection()(asked(1), 20)
    whole = sum(len(ids) + 1 for ids in samples.ids)
    assert samples.checks < samples.tries * LIMIT
    assert samples.tokens >= whole
    assert samples.masks == 0


def test_failure_is_reported_and_nothing_is_emitted():
    with pytest.raises(ConstraintError, match=r"none of 12 texts .* max_trials"):
        Rejection(max_trials=12)(asked(max_new_tokens=1), 2)
    with pytest.raises(InputError, match=r"a whole number in \[1, inf\)"):
        Rejection(rows=0)
    with pytest.raises(InputError):
        Rejection(max_trials=0)
    with pytest.raises(InputError, match="particles"):
        Rejection()(asked(), 0)


def test_plain_takes_rare_tokens_as_often_as_the_model():
    logprobs = torch.tensor([1e-3, 0.0, 1.0 - 1e-3]).log().expand(20_000, 3)
    state = Anything(3, [0]).initial()
    drawn = Plain().steps(logprobs, [state] * 20_000, torch.Generator().manual_seed(0))
    counts = torch.bincount(torch.tensor([step.token for step in drawn]), minlength=3)
    assert counts[1] == 0
    assert abs(int(counts[0]) - 20) < 30  # six deviations of a binomial


def test_on_a_transformer_texts_satisfy_the_constraint(tiny_llama_text, tiny_tokenizer):
    from tokenry.decode.constraints.predicate import Predicate

    short = Predicate(lambda text: len(text) < 9, lambda text: len(text) < 9, tiny_tokenizer)
    state = DecodingState.start(tiny_llama_text, torch.tensor([[5, 9]]))
    request = Request(state, short, (5, 9), max_new_tokens=6, must_end=False)
    samples = Rejection()(request, 5)
    assert all(len(tiny_tokenizer.decode(ids)) < 9 for ids in samples.ids)
    assert (state.rows, state.length) == (1, 2)
