"""The clipped surrogate against PPO's formula, and where its gradient ends."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenry.core.errors import InputError, ShapeError
from tokenry.learn.policy.surrogate import (
    clip_surrogate,
    clipped_surrogate,
    clipped_value_loss,
    importance_ratio,
    unclipped,
)

ratios = st.floats(0.01, 10)
advantages = st.floats(-5, 5)


def value_and_slope(ratio, advantage, *bounds):
    leaf = torch.tensor(ratio, dtype=torch.float64, requires_grad=True)
    value = clip_surrogate(leaf, torch.tensor(advantage, dtype=torch.float64), *bounds)
    value.backward()
    return float(value.detach()), float(leaf.grad)


@given(ratios, advantages, st.floats(0, 0.9), st.floats(0, 3))
def test_equals_the_minimum_of_both_branches(ratio, advantage, low, high):
    value, _ = value_and_slope(ratio, advantage, low, high)
    kept = min(max(ratio, 1 - low), 1 + high)
    assert value == pytest.approx(min(ratio * advantage, kept * advantage), abs=1e-9)


@given(ratios, advantages, st.floats(1.5, 4))
def test_dual_clip_bounds_the_loss_on_bad_tokens_only(ratio, advantage, ceiling):
    value, _ = value_and_slope(ratio, advantage, 0.2, 0.2, ceiling)
    plain, _ = value_and_slope(ratio, advantage, 0.2, 0.2)
    wanted = max(plain, ceiling * advantage) if advantage < 0 else plain
    assert value == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize(
    ("ratio", "advantage", "slope"),
    [
        (1.1, 2.0, 2.0),
        (1.3, 2.0, 0.0),  # good and already likelier
        (0.5, 2.0, 2.0),  # good and less likely: still pushed
        (0.7, -2.0, 0.0),  # bad and already less likely
        (1.5, -2.0, -2.0),  # bad and likelier: still pushed
        (4.0, -2.0, 0.0),  # beyond the dual clip
        (1.2, 2.0, 0.0),  # the bound itself
        (0.8, -2.0, 0.0),
    ],
)
def test_slope(ratio, advantage, slope):
    assert value_and_slope(ratio, advantage, 0.2, 0.2, 3.0)[1] == pytest.approx(slope)
    free = unclipped(torch.tensor(ratio), torch.tensor(advantage), 0.2, 0.2, 3.0)
    assert bool(free) == (slope != 0)


def test_bounds_may_differ_from_token_to_token():
    logprob = torch.log(torch.tensor([[2.0, 2.0], [0.1, 0.1]]))
    advantage = torch.tensor([[1.0], [-1.0]])
    high = torch.tensor([[0.5, 2.0], [0.2, 0.2]])
    low = torch.tensor([[0.2, 0.2], [0.5, 0.95]])
    got = clipped_surrogate(logprob, torch.zeros(2, 2), advantage, low, high)
    torch.testing.assert_close(got, torch.tensor([[1.5, 2.0], [-0.5, -0.1]]))


def test_at_the_old_policy_the_gradient_is_that_of_the_plain_policy_gradient():
    logprob = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    advantage = torch.randn(3, 4, dtype=torch.float64)
    clipped_surrogate(logprob, logprob.detach(), advantage).sum().backward()
    torch.testing.assert_close(logprob.grad, advantage)


def test_no_gradient_reaches_the_old_policy_or_the_advantage():
    leaves = [torch.randn(2, 3, requires_grad=True) for _ in range(3)]
    clipped_surrogate(*leaves).sum().backward()
    assert leaves[0].grad is not None
    assert leaves[1].grad is None
    assert leaves[2].grad is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_garbage_outside_the_mask_reaches_neither_value_nor_gradient(bad):
    mask = torch.tensor([[True, False]])
    logprob = torch.tensor([[-1.0, bad]], requires_grad=True)
    old = torch.tensor([[-1.0, bad]])
    surrogate = clipped_surrogate(logprob, old, torch.tensor([[2.0, bad]]), mask=mask)
    surrogate.sum().backward()
    assert surrogate.tolist() == [[2.0, 0.0]]
    assert logprob.grad.tolist() == [[2.0, 0.0]]


def test_enormous_log_ratios_stay_finite():
    logprob = torch.tensor([1e4, -1e4, 1e4, -1e4], requires_grad=True)
    surrogate = clipped_surrogate(logprob, torch.zeros(4), torch.tensor([1.0, 1.0, -1.0, -1.0]))
    surrogate.sum().backward()
    assert torch.isfinite(surrogate).all()
    assert torch.isfinite(logprob.grad).all()


def test_half_precision_gives_a_float32_ratio():
    ratio = importance_ratio(torch.full((2,), -1.0).bfloat16(), torch.full((2,), -1.0))
    assert ratio.dtype == torch.float32
    assert ratio.tolist() == [1.0, 1.0]


@given(advantages, advantages, advantages)
def test_the_value_loss_is_the_larger_of_both_errors(value, old, target):
    tensors = [torch.tensor(x, dtype=torch.float64) for x in (value, old, target)]
    kept = old + min(max(value - old, -0.2), 0.2)
    wanted = 0.5 * max((value - target) ** 2, (kept - target) ** 2)
    assert float(clipped_value_loss(*tensors, clip=0.2)) == pytest.approx(wanted)
    free = float(clipped_value_loss(*tensors, clip=None))
    assert free == pytest.approx(0.5 * (value - target) ** 2)


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="dual_clip"):
        clip_surrogate(torch.ones(1), torch.ones(1), dual_clip=0.5)
    with pytest.raises(ShapeError, match="one shape"):
        importance_ratio(torch.zeros(2, 3), torch.zeros(2))
