"""Event posterior regularisation: closed forms, brute force and gradients."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from tokenry.core.errors import InputError, ShapeError
from tokenry.learn.recipes.sequence_to_sequence.event_posterior import (
    EventLikelihood,
    event_token_weights,
    event_unlikelihood,
)


def batch(seed=0, N=2, T=3, V=5):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(N, T, V, generator=generator) * 2
    weights = torch.rand(N, V, generator=generator).softmax(-1)
    mask = torch.ones(N, T, dtype=torch.bool)
    mask[1, 2:] = False
    return logits, mask, weights


def test_without_preference_the_weights_are_uniform_and_the_sum_is_over_everything():
    weights = event_token_weights(5, [1], [2, 3], w_answer=1.0, w_nonanswer=1.0)
    assert torch.allclose(weights, torch.full((5,), 0.2))
    logits, mask, _ = batch()
    loss = event_unlikelihood(logits, mask, weights.expand(2, -1), selective=False)
    expected = -(1 - logits[mask].softmax(-1)).log().sum() / 5
    assert torch.allclose(loss, expected, rtol=1e-5)


def test_the_worked_example():
    logits = torch.tensor([[[0.8, 0.2]]]).log()
    loss = event_unlikelihood(logits, torch.ones(1, 1), torch.full((1, 2), 0.5))
    assert float(loss) == pytest.approx(-0.5 * math.log(0.2), abs=1e-6)
    assert float(loss) == pytest.approx(0.80472, abs=1e-5)


@given(st.integers(0, 50), st.booleans())
def test_is_the_written_sum(seed, selective):
    logits, mask, weights = batch(seed)
    expected = 0.0
    for n in range(2):
        for t in range(3):
            p = logits[n, t].softmax(-1).tolist()
            for v in range(5):
                if mask[n, t] and (not selective or p[v] == max(p)):
                    expected -= float(weights[n, v]) * math.log(1 - p[v])
    loss = event_unlikelihood(logits, mask, weights, selective=selective)
    assert float(loss) == pytest.approx(expected, rel=1e-4)


@given(
    st.lists(st.integers(0, 19), max_size=8, unique=True),
    st.integers(0, 8),
    st.floats(0.1, 3),
    st.floats(0.1, 3),
)
def test_weights_add_up_to_one_for_distinct_ids(ids, cut, w_answer, w_nonanswer):
    weights = event_token_weights(
        20, ids[:cut], ids[cut:], w_answer=w_answer, w_nonanswer=w_nonanswer
    )
    assert float(weights.sum()) == pytest.approx(1.0, abs=1e-5)
    rest = [v for v in range(20) if v not in ids]
    for group, factor in ((ids[:cut], w_answer), (ids[cut:], w_nonanswer)):
        for v in group:
            assert float(weights[v] / weights[rest[0]]) == pytest.approx(factor, rel=1e-4)


def test_ids_given_twice_count_twice():
    weights = event_token_weights(10, [], [4, 4], w_nonanswer=1.5)
    assert float(weights[4]) == pytest.approx(2.25 / 11, abs=1e-6)
    assert float(weights[0]) == pytest.approx(1 / 11, abs=1e-6)


def test_an_emitted_event_costs_less_among_the_answers():
    logits = torch.zeros(1, 1, 6)
    logits[0, 0, 3] = 2.0
    as_answer = event_token_weights(6, [3], [4])[None]
    as_other = event_token_weights(6, [4], [3])[None]
    mask = torch.ones(1, 1)
    losses = [event_unlikelihood(logits, mask, w) for w in (as_answer, as_other)]
    assert losses[0] < losses[1]
    assert float(losses[1] / losses[0]) == pytest.approx(3.0, rel=1e-4)


@pytest.mark.parametrize("selective", [True, False])
def test_gradient_is_zero_where_masked_and_that_of_finite_differences_elsewhere(selective):
    logits, mask, weights = batch(3)
    exact = logits.clone().requires_grad_()
    event_unlikelihood(exact, mask, weights, selective=selective).backward()
    assert not exact.grad[~mask].any()
    assert exact.grad[mask].abs().sum() > 0
    step = torch.zeros_like(logits)
    step[0, 1, 2] = 1e-2
    high, low = (
        event_unlikelihood(logits + s * step, mask, weights, selective=selective) for s in (1, -1)
    )
    assert float(exact.grad[0, 1, 2]) == pytest.approx(float(high - low) / 2e-2, abs=2e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_is_finite_as_a_probability_goes_to_one(dtype):
    logits = torch.tensor([[[200.0, 0.0, 0.0]]], dtype=dtype, requires_grad=True)
    loss = event_unlikelihood(logits, torch.ones(1, 1), torch.full((1, 3), 1 / 3))
    loss.backward()
    assert loss.item() == pytest.approx(-math.log(1e-8) / 3, rel=1e-3)
    assert logits.grad.isfinite().all()


def test_the_objective_is_the_cross_entropy_plus_a_share():
    logits, mask, weights = batch(1)
    target = torch.randint(5, (2, 3), generator=torch.Generator().manual_seed(0))
    loss = EventLikelihood(weight=0.3)(logits, target, mask, weights)
    likelihood = F.cross_entropy(logits[mask], target[mask])
    assert torch.allclose(loss, likelihood + 0.3 * event_unlikelihood(logits, mask, weights) / 2)
    assert torch.equal(EventLikelihood(weight=0.0)(logits, target, mask, weights), likelihood)


def test_wrong_input_is_named():
    logits, mask, weights = batch()
    with pytest.raises(ShapeError, match=r"\[2, 3\].*\[2, 5\].*\[2, 4\]"):
        event_unlikelihood(logits, mask, weights[:, :4])
    with pytest.raises(InputError, match=r"0\.\.4, not \[5\]"):
        event_token_weights(5, [5], [])
    with pytest.raises(InputError, match="w_answer is"):
        event_token_weights(5, [1], [], w_answer=0.0)
