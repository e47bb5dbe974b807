"""DPH-RL: its generators against enumerated divergences, the buffer, and PPO's clip without it."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from policy_variants import assert_same, prepared, random_tokens, rollouts, step
from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError, ShapeError
from tokenry.learn.compute import compute_loss, compute_scores
from tokenry.learn.objective import frozen_sources
from tokenry.learn.policy.dph_rl import (
    DPHRL,
    partition_prompts,
    rehearsal_divergence,
)
from tokenry.learn.policy.presets import GRPO
from tokenry.learn.policy.scored_rehearsal import RehearsalBuffer
from tokenry.model.score import score

T = torch.tensor
ROWS = [([5, 9], [7, 8, 1]), ([6], [10, 1]), ([5, 5, 5], [11])]
ZERO = torch.zeros(3, dtype=torch.float64)


@pytest.mark.parametrize(
    ("kind", "alpha", "values"),
    [
        ("forward_kl", 0.2, (0.19315, 0, 0.30685)),
        ("js", 0.2, (0.08495, 0, 0.16990)),
        ("alpha", 0.5, (0.17157, 0, 0.34315)),
    ],
)
def test_the_worked_generators_and_their_slope_at_1(kind, alpha, values):
    shift = T([0.5, 1.0, 2.0], dtype=torch.float64).log().requires_grad_()
    found = rehearsal_divergence(shift, ZERO, kind, alpha)
    assert found.tolist() == pytest.approx(values, abs=1e-5)
    slope = torch.autograd.grad(found.sum(), shift)[0]
    assert slope[1].item() == pytest.approx(0, abs=1e-12)
    assert slope[0] < 0 < slope[2]


@given(st.floats(-9, 2), st.sampled_from(["forward_kl", "js", "alpha"]), st.floats(0.05, 0.95))
def test_they_are_positive_and_their_gradient_is_that_of_finite_differences(x, kind, alpha):
    shift = T([x], dtype=torch.float64, requires_grad=True)
    found = rehearsal_divergence(shift, ZERO[:1], kind, alpha)
    assert found.item() >= -1e-12
    if abs(x) > 1e-2:
        assert found.item() > 0
    near = T([x - 1e-6, x + 1e-6], dtype=torch.float64)
    low, high = rehearsal_divergence(near, ZERO[:2], kind, alpha)
    slope = torch.autograd.grad(found, shift)[0].item()
    assert slope == pytest.approx(float(high - low) / 2e-6, rel=1e-4, abs=1e-7)


def categorical(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(7, generator=generator, dtype=torch.float64).log_softmax(-1)


def kl(p, q):
    return float((p.exp() * (p - q)).sum())


def test_over_the_references_samples_they_are_the_divergences():
    own, reference = categorical(1), categorical(2)
    mixture = ((own.exp() + reference.exp()) / 2).log()

    def mean(kind, alpha=0.2):
        return float((reference.exp() * rehearsal_divergence(own, reference, kind, alpha)).sum())

    assert mean("forward_kl") == pytest.approx(kl(reference, own))
    assert mean("js") == pytest.approx(kl(own, mixture) + kl(reference, mixture))
    assert mean("alpha", 1e-5) == pytest.approx(kl(own, reference), rel=1e-4)
    assert mean("alpha", 1 - 1e-5) == pytest.approx(kl(reference, own), rel=1e-4)
    power = float((reference.exp() ** 0.2 * own.exp() ** 0.8).sum())
    assert mean("alpha") == pytest.approx((power - 1) / (0.2 * -0.8))


def test_what_the_policy_has_lost_costs_most_in_the_forward_kl():
    own = T([1 - 1e-6, 1e-6], dtype=torch.float64).log()
    even = T([0.5, 0.5], dtype=torch.float64).log()

    def mean(kind):
        return float((0.5 * rehearsal_divergence(own, even, kind)).sum())

    assert mean("forward_kl") > 5  # 6.2 without the bound of 10 on f
    assert kl(even, own) > 6
    assert mean("js") < 2 * math.log(2)
    assert kl(own, even) == pytest.approx(0.69, abs=0.01)


def test_bounds_keep_stale_answers_finite():
    for kind in ("forward_kl", "js", "alpha"):
        shift = T([-1e4, 1e4, 30.0], dtype=torch.float64, requires_grad=True)
        found = rehearsal_divergence(shift, ZERO, kind)
        assert found.isfinite().all()
        assert torch.autograd.grad(found.sum(), shift)[0].isfinite().all()
    assert rehearsal_divergence(T([3.0]), T([0.0]), "forward_kl").item() == 10.0
    assert rehearsal_divergence(T([2.0]), T([0.0]), "forward_kl").item() < 10.0


def test_prompts_are_parted_by_their_right_answers():
    correct = T([8, 6, 7, 0, 5])
    assert [each.tolist() for each in partition_prompts(correct)] == [[0, 2], [1, 3, 4]]
    llama = partition_prompts(correct, threshold=6)
    assert [each.tolist() for each in llama] == [[0, 1, 2], [3, 4]]
    assert partition_prompts(T([4, 3]), draws=4, threshold=4)[0].tolist() == [0]
    for wrong in ({"correct": T([9])}, {"correct": T([1]), "threshold": 9}):
        with pytest.raises(InputError):
            partition_prompts(**wrong)


def test_without_a_rehearsal_or_its_weight_it_is_ppos_clip_without_kl():
    plain = replace(GRPO().composed(), aggregation="token-mean")
    assert_same(DPHRL(), plain)
    buffer = RehearsalBuffer(ROWS, 2, [[-1.0] * len(c) for _, c in ROWS])
    assert_same(DPHRL(rehearsal=buffer, eta=0.0), plain)
    assert DPHRL().needs == plain.needs


def written(model):
    """A batch of exploration as this model sampled it, with equal rewards: nothing to learn."""
    batch = TokenBatch.from_ids(
        [[*p, *c] for p, c in ROWS], [[False] * len(p) + [True] * len(c) for p, c in ROWS]
    )
    old = score(model, batch).need("logprob").detach()
    return batch.with_columns(old_logprob=old, advantage=torch.zeros(batch.shape))


@pytest.mark.parametrize("kind", ["forward_kl", "js", "alpha"])
def test_the_term_is_the_mean_over_stored_tokens_and_runs_no_reference(tiny_llama, kind):
    model = copy.deepcopy(tiny_llama)
    buffer = RehearsalBuffer.scored(ROWS, model, size=2)
    goal = DPHRL(kind=kind, eta=0.3, rehearsal=buffer)
    assert frozen_sources(goal) == ()
    assert not any("reference" in need for need in (*goal.needs, *goal.rollout_needs))
    modules, batch = goal.modules(model), written(model)
    begun = compute_loss(goal, batch, model, modules=modules)
    assert begun.loss.item() == pytest.approx(0, abs=1e-6)  # u = 1 everywhere
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(
                0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
            )
    assert int(modules["RehearsalBuffer"].turn) == 2
    stored = RehearsalBuffer.scored(ROWS, model, size=2)  # the same answers under the new policy
    result = compute_loss(goal, batch, model, modules=modules)  # rows 2 and 0
    own, its = ([x for n in (2, 0) for x in b.logprobs[n]] for b in (stored, buffer))
    wanted = rehearsal_divergence(T(own), T(its), kind).mean()
    assert result.loss.item() == pytest.approx(0.3 * wanted.item(), rel=1e-4)
    assert result.metrics["mastered/divergence"].item() == pytest.approx(wanted.item(), rel=1e-4)
    assert wanted > 0
    result.loss.backward()
    assert any(
        weight.grad is not None and weight.grad.abs().sum() > 0 for weight in model.parameters()
    )


def test_stored_log_probabilities_stand_on_their_tokens(tiny_llama):
    buffer = RehearsalBuffer(ROWS, 4, [[-1.0, -2.0, -3.0], [-4.0, -5.0], [-6.0]])
    goal = DPHRL(rehearsal=buffer)
    modules = goal.modules(tiny_llama)
    found = compute_scores(goal, written(tiny_llama), tiny_llama, modules=modules)
    view = found.others["batch@mastered"]
    values = [
        r[m].tolist() for r, m in zip(view.column("reference_logprob"), view.target, strict=True)
    ]
    assert values == [[-1, -2, -3], [-4, -5], [-6], [-1, -2, -3]]


@pytest.mark.parametrize(
    ("logprobs", "error"),
    [
        ([[-1.0] * 3, [-1.0], [-1.0]], ShapeError),
        ([], ShapeError),
        ([[-1.0, math.nan, -1.0], [-1.0] * 2, [-1.0]], InputError),
        ([[-1.0, 0.5, -1.0], [-1.0] * 2, [-1.0]], InputError),
    ],
)
def test_log_probabilities_that_cannot_be_are_refused(logprobs, error):
    with pytest.raises(error, match="logprobs"):
        RehearsalBuffer(ROWS, 2, logprobs)


@pytest.mark.parametrize("change", [{"kind": "k1"}, {"eta": -1.0}, {"alpha": 1.0}, {"clip": 0.0}])
def test_impossible_settings_are_refused(change):
    with pytest.raises(InputError):
        DPHRL(**change)
    flat = rollouts(rewards=[0.95] * 6)
    loss, _, _ = step(DPHRL(), prepared(DPHRL(), flat), random_tokens(flat, 1))
    assert loss == 0
