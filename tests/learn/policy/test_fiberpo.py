"""FiberPO: its worked gates, identity inside the budgets, the hierarchy, and GRPO on policy."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

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
from tokenry.learn.policy.fiber_gate import aggregate_gate, fiber_gate, sign_aggregates
from tokenry.learn.policy.fiberpo import FiberGate, FiberPO
from tokenry.learn.policy.presets import GRPO
from tokenry.learn.policy.surrogate import Clip

T = torch.tensor


def gate(x, rise, fall, eps):
    row = T([x], dtype=torch.float64)
    return fiber_gate(row, torch.ones_like(row).bool(), (rise, fall), eps)[0].tolist()


def test_inside_all_budgets_nothing_changes():
    x = [0.04, -0.02, 0.1, 0.0]
    assert gate(x, 0.05, 0.05, 0.2) == pytest.approx(x, abs=1e-15)


def test_the_worked_gate():
    x = T([[0.3, -0.1, 0.5, 0.1]], dtype=torch.float64)
    positive, negative, length = sign_aggregates(x, torch.ones(1, 4).bool())
    assert (positive.item(), negative.item(), length.item()) == pytest.approx((0.225, 0.025, 4))
    assert gate(x[0].tolist(), 0.25, 0.2, 0.05) == pytest.approx([0.275, 0.1, 0.275, 0.175])


@pytest.mark.parametrize(("rise", "value"), [(0.35, 0.3), (0.25, 0.05), (0.2, 0.0)])
def test_a_drift_that_all_share_passes_falls_back_or_is_gone(rise, value):
    assert gate([0.3] * 4, rise, 0.2, 0.05) == pytest.approx([value] * 4, abs=1e-12)
    assert gate([-0.3] * 4, 0.2, rise, 0.05) == pytest.approx([-value] * 4, abs=1e-12)


@pytest.mark.parametrize("length", [1, 4, 1000])
def test_the_gate_is_odd_and_continuous_with_slopes_1_minus_t_and_0(length):
    n = T(float(length), dtype=torch.float64)
    end = 0.3 * (1 + 1 / length)
    for value, wanted in ((0.3, 0.3), (0.3 + 1e-9, 0.3), (end - 1e-9, 0.0), (end + 1e-9, 0.0)):
        for sign in (1, -1):
            x = T(sign * value, dtype=torch.float64)
            assert aggregate_gate(x, 0.3, n).item() == pytest.approx(sign * wanted, abs=2e-6)
    for value, slope in ((0.2, 1.0), (0.3 + 0.15 / length, -float(length)), (2 * end, 0.0)):
        x = T(value, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.grad(aggregate_gate(x, 0.3, n), x)[0].item() == slope


def test_on_policy_the_jacobian_is_the_identity_and_completions_do_not_mix():
    mask = T([[1, 1, 1, 0], [1, 1, 1, 1]]).bool()

    def gated(x):
        return fiber_gate(x, mask, (0.12, 0.08), 0.05)

    jacobian = torch.autograd.functional.jacobian(gated, torch.zeros(2, 4, dtype=torch.float64))
    wanted = torch.diag(mask.flatten().double()).view(2, 4, 2, 4)
    torch.testing.assert_close(jacobian, wanted)
    moved = 0.3 * torch.randn(2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(gated, moved)
    assert (jacobian[0, :, 1] == 0).all()
    assert (jacobian[1, :, 0] == 0).all()
    step = 1e-6
    for row, column in ((0, 1), (1, 2)):
        shift = torch.zeros_like(moved)
        shift[row, column] = step
        numeric = (gated(moved + shift) - gated(moved - shift)) / (2 * step)
        torch.testing.assert_close(jacobian[:, :, row, column], numeric, rtol=1e-6, atol=1e-8)


def test_it_is_grpo_without_clip_in_wide_budgets_and_grpo_on_policy():
    wide = FiberPO(rise=1e6, fall=1e6, eps=1e6)
    assert_same(
        wide, replace(GRPO().composed(), clip=Clip(None, None)), moves=(0.0, 0.05, 0.4, 3.0)
    )
    hierarchy = replace(wide, group_budget=1e6)
    assert_same(hierarchy, wide, moves=(0.0, 0.4, 3.0))
    assert_same(FiberPO(), GRPO(), moves=(0.0,))


def test_against_the_definition_written_out():
    batch = rollouts()
    goal = FiberPO(rise=0.2, fall=0.15, eps=0.1)
    ready = prepared(goal, batch)

    def g(s, c, n):
        if s <= c:
            return s
        return (n + 1) * c - n * s if s < (1 + 1 / n) * c else 0 * s

    def by_hand(x):
        total = 0.0
        for row in range(6):
            own = x[row][batch.target[row]]
            n = len(own)
            up = sum(v for v in own if v >= 0) / n + 0 * own[0]
            down = sum(-v for v in own if v < 0) / n + 0 * own[0]
            for v in own:
                same, other = (up, -down) if v >= 0 else (-down, up)
                log = g(up, 0.2, n) - g(down, 0.15, n)
                log = log + (v - same).clamp(-0.1, 0.1) - other.clamp(-0.1, 0.1)
                total = total - log.exp() * ready.column("advantage")[row, 1].double() / n / 6
        return total

    for seed, scale in enumerate((0.1, 0.3, 0.8)):
        assert_gradient(by_hand, goal, ready, random_tokens(batch, seed, scale))


def test_a_groups_drift_is_gated_by_its_own_budget():
    """All of a group at 0.3: its mean is gone beyond the group's budget, not the completion's."""
    mask = torch.ones(4, 4).bool()
    x = T([[0.3] * 4, [0.3] * 4, [0.1] * 4, [0.0] * 4], dtype=torch.float64)
    node = T([5, 5, 2, 2])
    found = fiber_gate(x, mask, (0.35, 0.35), 0.05, [(node, (0.25, 0.25))])
    # group 5: T = 8 tokens, 0.3 > 0.25 (1 + 1/8); group 2: mean 0.05, rest 0.05 and -0.05
    assert found[:, 0].tolist() == pytest.approx([0, 0, 0.1, 0.0], abs=1e-12)
    assert fiber_gate(x, mask, (0.35, 0.35), 0.05)[:, 0].tolist() == pytest.approx(
        [0.3, 0.3, 0.1, 0.0]
    )
    # the rest of a completion is gated at its own level: 0.2 -+ 0.1 with a budget of 0.05
    x = T([[0.3] * 4, [0.1] * 4], dtype=torch.float64)
    found = fiber_gate(x, mask[:2], (0.05, 0.05), 0.05, [(T([1, 1]), (0.25, 0.25))])
    assert found[:, 0].tolist() == pytest.approx([0.2, 0.2])


@given(st.integers(0, 10_000))
def test_inside_the_budgets_of_all_levels_nothing_changes(seed):
    generator = torch.Generator().manual_seed(seed)
    x = 0.02 * torch.randn(6, 5, generator=generator, dtype=torch.float64)
    mask = torch.rand(6, 5, generator=generator) < 0.7
    above = [(T([0, 0, 0, 0, 1, 1]), (0.5, 0.5)), (T([3, 3, 4, 4, 7, 7]), (0.5, 0.5))]
    found = fiber_gate(x, mask, (0.5, 0.5), 0.5, above)
    torch.testing.assert_close(found, x.masked_fill(~mask, 0.0))


def test_levels_are_read_from_the_batch_and_say_that_rows_are_coupled():
    domains = FiberGate((0.1, 0.1), 0.05, domain=(0.2, 0.2))
    assert (domains.separable, FiberPO().separable) == (False, True)
    assert not FiberPO(group_budget=0.2).separable
    goal = FiberPO(domain_budget=0.2)
    assert "row.domain" in goal.needs
    assert goal.composed().gate.domain == pytest.approx((0.12, 0.08))
    batch = rollouts()
    shift = torch.where(batch.target, 0.11, 0.0).double()
    with pytest.raises(InputError, match="domain"):
        step(goal, prepared(goal, batch), shift)
    one = batch.with_columns(domain=torch.zeros(6).long())
    loss = step(goal, prepared(goal, one), shift)[0]  # 0.11 < 0.12: passes
    assert loss.item() == pytest.approx(step(FiberPO(), prepared(goal, batch), shift)[0].item())


def test_regimes_are_counted_and_stale_ratios_stay_finite():
    batch = rollouts([4, 4], [1.0, 0.0], [0, 0])
    goal = FiberPO(rise=0.25, fall=0.08)
    ready = prepared(goal, batch)
    metrics = step(goal, ready, on(batch, [[0.3] * 4, [-0.3] * 4]))[2]
    names = ("rise/back", "rise/zero", "fall/back", "fall/zero")
    assert [metrics[name].item() for name in names] == [0.5, 0, 0, 0.5]
    for size in (1e3, -1e3):
        loss, gradient, _ = step(goal, ready, torch.full(ready.shape, size).double())
        assert loss.isfinite()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("change", [{"rise": 0.0}, {"eps": -1.0}, {"group_budget": 0.0}])
def test_impossible_settings_are_refused(change):
    with pytest.raises(InputError):
        FiberPO(**change)
