"""Best of n against enumeration."""

import math

import pytest
import torch

from tokenry.core.errors import InputError
from tokenry.decode.samplers.best_of_n import BestOfN
from tokenry.decode.samplers.rejection import Rejection
from tokenry.decode.samplers.request import Request
from tokenry.lab.token_rule import OddSum
from tokenry.tasks.worlds.toy_lm import ToyLM, ToyState, odd_sum

MODEL = ToyLM(vocab_size=4, order=2, eos=0, seed=3)


def asked(seed=0, **options):
    start = ToyState.start(MODEL, torch.zeros(1, 0, dtype=torch.long))
    generator = torch.Generator().manual_seed(seed)
    return Request(start, OddSum(), max_new_tokens=4, generator=generator, **options)


def test_with_many_candidates_it_is_the_mode():
    exact = {text: value for text, value in MODEL.texts(4).items() if odd_sum(text)}
    mode = max(exact, key=exact.__getitem__)
    found = BestOfN(n=200)(asked(), 3)
    assert [tuple(ids) for ids in found.ids] == [mode] * 3
    assert found.log_weights.tolist() == [0.0] * 3


def test_the_best_of_exact_draws_has_the_law_of_a_maximum():
    """P(best ranks at or above y) = 1 - (1 - P(y or better))^n, within six deviations."""
    conditional, _ = MODEL.conditional(odd_sum, 4)
    ranked = sorted(conditional.items(), key=lambda item: -item[1])
    found = BestOfN(n=3, sampler=Rejection(rows=512, max_trials=10**6))(asked(1), 500)
    assert len(found.ids) == 500
    above = 0.0
    for place, (_, p) in enumerate(ranked):
        above += p
        expected = 1 - (1 - above) ** 3
        best = {text for text, _ in ranked[: place + 1]}
        share = sum(tuple(ids) in best for ids in found.ids) / 500
        assert abs(share - expected) < 6 * math.sqrt(0.25 / 500)


def test_a_scorer_decides_and_is_told_the_prompt():
    def longest(prompt, texts):
        assert prompt == [7]
        return [float(len(text)) for text in texts]

    found = BestOfN(n=40, scorer=longest)(asked(prompt_ids=(7,)), 2)
    assert [len(ids) for ids in found.ids] == [3, 3]
    assert all(odd_sum(tuple(ids)) for ids in found.ids)


def test_dead_candidates_never_win():
    found = BestOfN(n=2, sampler="mask", scorer=lambda _, texts: [-len(t) for t in texts])(
        asked(), 30
    )
    for ids, weight, ended in zip(
        found.ids, found.log_weights.tolist(), found.finished, strict=True
    ):
        assert (weight == 0.0) == (ended and odd_sum(tuple(ids)))


def test_scores_that_cannot_be_compared_are_refused():
    for scorer in (lambda _, texts: [math.nan] * len(texts), lambda _, texts: [1.0]):
        with pytest.raises(InputError, match="one number for each"):
            BestOfN(n=4, scorer=scorer)(asked(), 1)
    with pytest.raises(InputError, match="n is 0"):
        BestOfN(n=0)
