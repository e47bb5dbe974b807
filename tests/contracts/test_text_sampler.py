"""What every sampler of texts must keep: valid texts, and proper weights if it says `exact`.

For every text y, E[(1/P) Σ_i w_i 1{y_i = y}] = p(y) accept(y): checked by enumeration on toy
models.
"""

import math
from collections import defaultdict
from typing import Any

import pytest
import torch

from role_cases import cases
from tokenry.core.errors import ConstraintError
from tokenry.decode.constraints.base import Anything
from tokenry.decode.samplers.request import Request, text_sampler
from tokenry.lab.token_rule import OddSum
from tokenry.tasks.worlds.toy_lm import ToyLM, ToyState, odd_sum

LIMIT, CALLS, PARTICLES = 4, 150, 40


def request(model: ToyLM, constraint: Any, seed: int = 0, **options: Any) -> Request:
    start = ToyState.start(model, torch.zeros(1, 0, dtype=torch.long))
    generator = torch.Generator().manual_seed(seed)
    options = {"max_new_tokens": LIMIT, **options}
    return Request(start, constraint, generator=generator, **options)


EACH = pytest.mark.parametrize("made", cases(text_sampler))


@EACH
@pytest.mark.parametrize("seed", [0, 5])
def test_exact_samplers_are_properly_weighted(made, seed):
    """Means over independent calls, each within six of its own standard errors.

    A normal deviate is beyond six with probability 2e-9; some 40 texts are looked at.
    """
    model = ToyLM(vocab_size=4, order=2, eos=0, seed=seed)
    sampler = made()
    if not sampler.exact:
        pytest.skip("not exact, and says so")
    exact = {text: math.exp(value) for text, value in model.texts(LIMIT).items() if odd_sum(text)}
    estimates: dict[tuple[int, ...], list[float]] = defaultdict(lambda: [0.0] * CALLS)
    for call in range(CALLS):
        found = made()(request(model, OddSum(), seed=1000 * seed + call), PARTICLES)
        weights = found.log_weights.exp().tolist()
        for ids, weight in zip(found.ids, weights, strict=True):
            if weight > 0:
                assert odd_sum(tuple(ids))
                estimates[tuple(ids)][call] += weight / len(weights)
    assert estimates.keys() <= exact.keys()
    for text, truth in exact.items():
        values = torch.tensor(estimates[text], dtype=torch.float64)
        # the floor keeps a text that was hardly ever drawn from claiming an error of zero
        error = max(float(values.std()), math.sqrt(truth / PARTICLES)) / math.sqrt(CALLS)
        assert abs(float(values.mean()) - truth) < 6 * error, text


@EACH
def test_texts_are_valid_and_weights_fit(made):
    model = ToyLM(vocab_size=4, order=2, eos=0, seed=3)
    found = made()(request(model, OddSum()), 8)
    assert len(found.ids) == len(found.log_weights) == len(found.finished) >= 1
    assert found.log_weights.dtype == torch.float64
    for ids, weight, ended in zip(
        found.ids, found.log_weights.tolist(), found.finished, strict=True
    ):
        if weight > -math.inf:
            assert ended
            assert odd_sum(tuple(ids))
            assert len(ids) < LIMIT


@EACH
def test_same_seed_same_texts_and_the_request_is_untouched(made):
    model = ToyLM(vocab_size=4, order=2, eos=0, seed=4)
    first, second = (made()(request(model, OddSum(), seed=9), 5) for _ in range(2))
    assert first.ids == second.ids
    assert torch.equal(first.log_weights, second.log_weights)
    asked = request(model, OddSum())
    made()(asked, 3)
    assert asked.decoding.rows == [[]]


@EACH
def test_without_a_constraint_the_weights_are_one(made):
    """On average, where they depend on what was drawn."""
    model = ToyLM(vocab_size=4, order=2, eos=0, seed=6)
    if not made().exact:
        pytest.skip("not exact, and says so")
    asked = [request(model, Anything(4, [0]), seed, must_end=False) for seed in range(60)]
    means = torch.stack([made()(one, 6).log_weights.exp().mean() for one in asked])
    assert abs(float(means.mean()) - 1) < 6 * float(means.std()) / math.sqrt(60) + 1e-6


@EACH
def test_a_constraint_that_nothing_satisfies_gives_no_text(made):
    """An error of the library's own, or no weight; never a text."""

    class Nothing(OddSum):
        def initial(self):
            return _Refuses()

    model = ToyLM(vocab_size=4, order=2, eos=0, seed=7)
    try:
        found = made()(request(model, Nothing()), 4)
    except ConstraintError:
        return
    assert bool((found.log_weights == -math.inf).all())


class _Refuses:
    complete = finished = False
    mask_cost = 4.0

    def allows(self, token):
        return False

    def mask(self):
        return torch.zeros(4, dtype=torch.bool)
