"""TGDPO against its paper: worked example, its limits, token gradients, and what the guide gets."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError
from tokenry.core.scores import Scores
from tokenry.learn.objective import objective
from tokenry.learn.preference.dpo import DPO
from tokenry.learn.preference.tgdpo import TGDPO, GuideWeight
from tokenry.learn.preference.weighted import PreferenceObjective

LENGTHS = (3, 2, 4, 1)  # completion tokens of chosen 0, 1 and rejected 0, 1


def case(seed=0, scale=1.0, dtype=torch.float64):
    """A batch of two pairs and log-probabilities of policy, reference and guide, all [4, 6]."""
    generator = torch.Generator().manual_seed(seed)
    rows = [[5, 5] + [1] * length for length in LENGTHS]
    target = [[False, False] + [True] * length for length in LENGTHS]
    batch = TokenBatch.from_ids(rows, target, group=[0, 1, 0, 1])
    values = [
        -torch.rand(batch.shape, generator=generator, dtype=dtype) * scale * 3 for _ in range(3)
    ]
    return batch, *values


def scores(batch, logprob):
    return Scores(batch.ids, batch.target, logprob=logprob)


def loss_of(objective, batch, policy, reference, guide):
    return objective(
        batch, scores(batch, policy), scores(batch, reference), guide=scores(batch, guide)
    )


def one_token_pair(values):
    """One token on each side; values: its log-probability, chosen and rejected."""
    return torch.tensor([[0.0, values[0]], [0.0, values[1]]], dtype=torch.float64)


def test_worked_example_of_one_token_per_side():
    batch = TokenBatch.from_ids([[0, 1], [0, 1]], group=[0, 0])
    policy, reference = one_token_pair((-1.0, -3.0)), one_token_pair((-2.0, -2.0))
    guide = one_token_pair((0.0, -4.0))
    result = loss_of(TGDPO(beta=0.5, alpha=0.5), batch, policy, reference, guide)
    assert float(result.loss) == pytest.approx(0.201413, abs=1e-6)
    assert float(result.metrics["rewards/margin"]) == pytest.approx(1.5)
    plain = DPO(0.5)(batch, scores(batch, policy), scores(batch, reference))
    assert float(plain.loss) == pytest.approx(0.313262, abs=1e-6)
    weight = GuideWeight(0.5, 0.5)(
        batch, None, scores(batch, reference), guide=scores(batch, guide)
    )
    assert weight[:, 1].tolist() == [1.5, 1.5]


@pytest.mark.parametrize("how", ["alpha is zero", "the guide is the reference"])
def test_is_dpo_in_value_and_gradient_when(how):
    batch, policy, reference, guide = case()
    objective = TGDPO(alpha=0.0) if how == "alpha is zero" else TGDPO()
    guide = guide if how == "alpha is zero" else reference
    found = []
    for run in (
        lambda leaf: loss_of(objective, batch, leaf, reference, guide),
        lambda leaf: DPO()(batch, scores(batch, leaf), scores(batch, reference)),
    ):
        leaf = policy.clone().requires_grad_()
        loss = run(leaf).loss
        found.append((loss.detach(), *torch.autograd.grad(loss, leaf)))
    torch.testing.assert_close(found[0], found[1])


def test_a_tokens_gradient_is_dpos_coefficient_times_its_weight():
    batch, policy, reference, guide = case(3)
    beta, alpha = 0.7, 0.4
    leaf = policy.clone().requires_grad_()
    result = loss_of(TGDPO(beta, alpha), batch, leaf, reference, guide)
    (gradient,) = torch.autograd.grad(result.loss, leaf)
    coefficient = torch.sigmoid(-result.metrics["rewards/margin"])  # per pair
    reward = beta * (guide - reference)
    sign = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)[:, None]
    weight = 1 + sign * alpha * reward
    expected = -sign * coefficient.repeat(2)[:, None] * beta * weight / 2  # mean of 2 pairs
    torch.testing.assert_close(gradient, torch.where(batch.target, expected, 0.0))


def test_no_gradient_reaches_guide_or_reference():
    batch, policy, reference, guide = case()
    leaves = [values.requires_grad_() for values in (policy, reference, guide)]
    loss_of(TGDPO(), batch, leaves[0], leaves[1].detach(), leaves[2]).loss.backward()
    assert leaves[0].grad is not None
    assert leaves[2].grad is None
    assert not GuideWeight()(
        batch, None, scores(batch, leaves[1]), guide=scores(batch, leaves[2])
    ).requires_grad


@settings(max_examples=20)
@given(st.integers(0, 1000))
def test_swapping_the_sides_and_the_guides_sign_flips_the_margin(seed):
    batch, policy, reference, guide = case(seed)
    margin = loss_of(TGDPO(), batch, policy, reference, guide).metrics["rewards/margin"]
    swap = torch.tensor([2, 3, 0, 1])
    against = reference - (guide - reference)  # rewards with the opposite sign
    other = loss_of(
        TGDPO(), batch.select(swap), policy[swap], reference[swap], against[swap]
    ).metrics["rewards/margin"]
    torch.testing.assert_close(other, -margin)


@pytest.mark.parametrize("garbage", [1e6, math.nan, math.inf])
def test_what_the_guide_says_outside_the_target_does_not_matter(garbage):
    batch, policy, reference, guide = case()
    leaf = policy.clone().requires_grad_()
    spoiled = torch.where(batch.target, guide, garbage)
    loss = loss_of(TGDPO(), batch, leaf, reference, spoiled).loss
    (gradient,) = torch.autograd.grad(loss, leaf)
    torch.testing.assert_close(loss, loss_of(TGDPO(), batch, leaf, reference, guide).loss)
    assert gradient.isfinite().all()
    assert (gradient[~batch.target] == 0).all()


def test_a_floor_keeps_weights_positive_and_changes_nothing_where_they_were():
    batch, policy, reference, guide = case(scale=30.0)
    free = GuideWeight(0.5, 1.0)(batch, None, scores(batch, reference), guide=scores(batch, guide))
    held = GuideWeight(0.5, 1.0, floor=0.1)(
        batch, None, scores(batch, reference), guide=scores(batch, guide)
    )
    assert (free < 0).any()
    torch.testing.assert_close(held, free.clamp(min=0.1))
    floored = loss_of(TGDPO(1.0, floor=0.1), batch, policy, reference, guide)
    assert float(floored.loss) != float(loss_of(TGDPO(1.0), batch, policy, reference, guide).loss)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_log_probabilities_of_minus_1e4_stay_finite(dtype):
    batch, policy, reference, guide = case(scale=1e4, dtype=dtype)
    leaf = policy.clone().requires_grad_()
    loss = loss_of(TGDPO(), batch, leaf, reference, guide).loss
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert leaf.grad.isfinite().all()


def test_its_weight_is_a_part_of_free_compositions():
    batch, policy, reference, guide = case()
    composed = PreferenceObjective(beta=0.1, weight=GuideWeight(0.5, 0.1))
    assert "guide.logprob" in composed.needs
    torch.testing.assert_close(
        loss_of(composed, batch, policy, reference, guide).loss,
        loss_of(TGDPO(), batch, policy, reference, guide).loss,
    )


def test_is_filed_under_its_paper_and_asks_for_its_guide():
    assert objective["tgdpo"] is TGDPO
    assert {entry.key: entry.paper for entry in objective}["tgdpo"] == 38
    batch, policy, reference, _ = case()
    with pytest.raises(InputError, match="guide"):
        TGDPO()(batch, scores(batch, policy), scores(batch, reference))
    with pytest.raises(InputError, match="logprob"):
        TGDPO()(
            batch,
            scores(batch, policy),
            scores(batch, reference),
            guide=replace(scores(batch, policy), logprob=None),
        )
