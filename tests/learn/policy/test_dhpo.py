"""DHPO: its worked ratios, GRPO and GSPO at its two ends, and what its gradient stops at."""

import math
from dataclasses import replace

import pytest
import torch

from policy_variants import (
    assert_gradient,
    assert_same,
    on,
    prepared,
    random_tokens,
    rollouts,
    step,
)
from tokenry.core.errors import InputError
from tokenry.learn.policy.dhpo import DHPO
from tokenry.learn.policy.groups import GroupAdvantage
from tokenry.learn.policy.hybrid import entropy_weight, hybrid_surrogate
from tokenry.learn.policy.presets import DAPO, GRPO, GSPO

T = torch.tensor


def test_the_worked_mixtures_of_clipped_branches():
    r = T([[1.2, 0.5, 1.0]], dtype=torch.float64)
    s = torch.full_like(r, 0.6 ** (1 / 3))
    assert s[0, 0].item() == pytest.approx(0.84343, abs=1e-5)
    ones = torch.ones_like(r)
    # for A > 0 the smaller of the two mixtures, for A < 0 the larger
    good = hybrid_surrogate(r, s, 0.5, ones)
    assert good.tolist()[0] == pytest.approx([1.02172, 0.67172, 0.92172], abs=1e-5)
    bad = -hybrid_surrogate(r, s, 0.5, -ones)
    assert bad.tolist()[0] == pytest.approx([1.09985, 0.89985, 0.99985], abs=1e-9)


@pytest.mark.parametrize(
    ("advantage", "dual", "value", "slope"),
    [(1.0, None, 1.1, 0.0), (-1.0, None, -25.5, -0.5), (-1.0, 10.0, -10.0, 0.0)],
)
def test_an_outlier_is_clipped_before_it_is_mixed(advantage, dual, value, slope):
    """r = 50, s = 1; mixed first it would be 25.5, clipped at 1.2 or at 1.0004."""
    r = T([[50.0]], dtype=torch.float64, requires_grad=True)
    s, a = torch.ones(1, 1, dtype=torch.float64), T([[advantage]])
    found = hybrid_surrogate(r, s, 0.5, a, dual=dual)
    assert found.item() == pytest.approx(value)
    assert torch.autograd.grad(found, r)[0].item() == pytest.approx(slope)


def test_the_minimum_of_each_branch_is_no_more_than_that_of_the_mixture():
    """r = 1.5 above its region, s = 0.9 below its own: good tokens lose both gradients or one."""
    r, s = (T([[x]], dtype=torch.float64, requires_grad=True) for x in (1.5, 0.9))
    for branch_min, value, slopes in (
        (False, 0.5 * 1.2 + 0.5 * 0.9997, (0.0, 0.0)),
        (True, 0.5 * 1.2 + 0.5 * 0.9, (0.0, 0.5)),
    ):
        found = hybrid_surrogate(r, s, 0.5, torch.ones(1, 1), branch_min=branch_min)
        assert found.item() == pytest.approx(value)
        if any(slopes):
            assert torch.autograd.grad(found, s)[0].item() == pytest.approx(slopes[1])


def test_weights_run_from_the_surest_to_the_least_sure_token():
    entropy = T([[9.0, 0.5, 1.0, 2.5], [9.0, 0.7, 0.7, 0.7], [9.0, 9.0, 0.1, 9.0]])
    mask = T([[0, 1, 1, 1], [0, 1, 1, 1], [0, 0, 1, 0]]).bool()
    weight = entropy_weight(entropy, mask)
    assert weight[mask].tolist() == pytest.approx([0, 0.25, 1, 0.5, 0.5, 0.5, 0.5])
    torch.testing.assert_close(entropy_weight(3 * entropy, mask), weight)
    spoiled = torch.where(mask, entropy, torch.nan)
    torch.testing.assert_close(entropy_weight(spoiled, mask)[mask], weight[mask])


GROUPED = GroupAdvantage(eps=1e-6)


@pytest.mark.parametrize("branch_min", [False, True])
def test_its_ends_are_grpo_and_gspo(branch_min):
    ends = {"mixing": "average", "branch_min": branch_min}
    assert_same(DHPO(weight=1.0, **ends), replace(GRPO().composed(), advantage=GROUPED))
    wide = replace(DAPO(dynamic=False).composed(), aggregation="sequence-mean", advantage=GROUPED)
    assert_same(DHPO(weight=1.0, clip_high=0.28, **ends), wide)
    assert_same(DHPO(weight=0.0, **ends), replace(GSPO().composed(), advantage=GROUPED))


def test_on_the_policy_that_sampled_a_constant_mixture_is_both():
    middle = DHPO(mixing="average")
    for other in (GRPO(), GSPO()):
        assert_same(middle, replace(other.composed(), advantage=GROUPED), moves=(0.0,))
    batch = rollouts()
    entropy = random_tokens(batch, 6).abs()
    with pytest.raises(AssertionError):  # a weight that varies within a completion is neither
        assert_same(
            DHPO(), replace(GRPO().composed(), advantage=GROUPED), moves=(0.0,), entropy=entropy
        )


@pytest.mark.parametrize("dual", [None, 1.5])
def test_against_the_definition_written_out(dual):
    batch = rollouts()
    entropy = random_tokens(batch, 6).abs()
    goal = DHPO(sequence_clip=0.05, sequence_clip_high=0.1, clip_high=0.3, dual=dual)
    ready = prepared(goal, batch, entropy=entropy)
    advantage = ready.column("advantage").double()

    def by_hand(x):
        total = 0.0
        for row in range(6):
            n = int(batch.target[row].sum())
            own, h = x[row, 1 : 1 + n], entropy[row, 1 : 1 + n]
            w = (h - h.min()) / (h.max() - h.min()) if n > 1 else torch.full_like(h, 0.5)
            r, s = own.exp(), own.mean().exp()
            u = w * r + (1 - w) * s
            v = w * r.clamp(0.8, 1.3) + (1 - w) * s.clamp(0.95, 1.1)
            a = advantage[row, 1]
            least = torch.minimum(u * a, v * a)
            if dual and a < 0:
                least = least.clamp_min(dual * a)
            total = total - least.mean() / 6
        return total

    for seed in range(3):
        assert_gradient(by_hand, goal, ready, random_tokens(batch, seed, 0.4))


def test_each_region_is_watched_apart():
    batch = rollouts([2, 2], [1.0, 0.0], [0, 0])
    ready = prepared(DHPO(mixing="average"), batch)
    shift = on(batch, [[math.log(1.3), math.log(1 / 1.3)], [0.01, 0.01]])
    own = DHPO(mixing="average")

    metrics = step(own, ready, shift)[2]
    assert metrics["outside/token"].item() == pytest.approx(0.5)
    assert metrics["outside/sequence"].item() == pytest.approx(0.5)


def test_stale_ratios_and_equal_rewards_stay_finite():

    batch = rollouts()
    ready = prepared(DHPO(), batch, entropy=random_tokens(batch, 6).abs())
    for size in (1e3, -1e3):
        loss, gradient, _ = step(DHPO(), ready, torch.full(batch.shape, size).double())
        assert loss.isfinite()
        assert gradient.isfinite().all()
    flat = rollouts(rewards=[0.95] * 6)
    ready = prepared(DHPO(), flat, entropy=random_tokens(batch, 6).abs())
    loss, gradient, _ = step(DHPO(), ready, random_tokens(flat, 2))
    assert loss == 0
    assert (gradient == 0).all()


@pytest.mark.parametrize(
    "change",
    [{"mixing": "none"}, {"weight": 1.1}, {"clip": 0.0}, {"sequence_clip": -1.0}, {"dual": 1.0}],
)
def test_impossible_settings_are_refused(change):
    with pytest.raises(InputError):
        DHPO(**change)
