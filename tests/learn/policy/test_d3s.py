"""D3S: exact subsets of greatest variance, the tokens it keeps, its schedule, GRPO when it keeps
all."""

from itertools import combinations
from statistics import pvariance

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from policy_variants import assert_gradient, assert_same, prepared, random_tokens, rollouts, step
from tokenry.core.errors import InputError, ShapeError
from tokenry.learn.policy.d3s import D3S, Schedule
from tokenry.learn.policy.down_sampling import (
    max_variance_subset,
    select_rollouts,
    select_tokens,
)
from tokenry.learn.policy.presets import GRPO, GSPO

T = torch.tensor
ALL = {"count_start": 8, "share_start": 1.0, "share_end": 1.0}


def test_the_worked_subset():
    values = T([1.5, 0.2, -0.1, -0.6, -1.0])
    chosen = max_variance_subset(values, 3)
    assert chosen.tolist() == [0, 3, 4]
    assert values[chosen].var(correction=0).item() == pytest.approx(1.20222, abs=1e-5)


@given(st.lists(st.integers(-6, 6), min_size=1, max_size=10), st.data())
def test_no_subset_varies_more(values, data):
    k = data.draw(st.integers(1, len(values)))
    chosen = max_variance_subset(T(values).float(), k).tolist()
    assert len(set(chosen)) == k
    best = max(pvariance(c) for c in combinations(values, k))
    assert pvariance([values[n] for n in chosen]) == pytest.approx(best, abs=1e-6)


@given(st.integers(0, 10_000), st.integers(3, 12))
def test_of_values_with_unbiased_variance_1_every_size_keeps_at_least_1(seed, n):
    values = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    values = (values - values.mean()) / values.std()
    for k in range(2, n + 1):
        assert values[max_variance_subset(values, k)].var().item() >= 1 - 1e-9
    assert max_variance_subset(values, n).tolist() == list(range(n))


@pytest.mark.parametrize("k", [0, 4])
def test_a_subset_that_does_not_exist_is_refused(k):
    with pytest.raises(InputError, match=r"k is"):
        max_variance_subset(torch.zeros(3), k)


def test_both_levels_worked():
    """Groups of four, four and two: the third has no spread, the second varies less."""
    group = T([7, 3, 7, 3, 7, 3, 7, 3, 9, 9])
    advantage = T([1.0, 0.5, 0.1, -0.4, -0.2, 0.0, -1.5, -0.1, 0.0, 0.0])
    one = select_rollouts(advantage, group, 2, None)
    assert one.nonzero()[:, 0].tolist() == [0, 1, 3, 6, 8, 9]
    two = select_rollouts(advantage, group, 2)
    assert two.nonzero()[:, 0].tolist() == [0, 1, 3, 6]  # no group of equal rewards
    assert select_rollouts(advantage, group, 2, 0.5).nonzero()[:, 0].tolist() == [0, 6]
    assert select_rollouts(advantage, group, 2, 0.51).sum() == 3  # ceil(2.04)
    assert select_rollouts(advantage, group, 2, 0.01).sum() == 2  # no variance of one
    assert not select_rollouts(torch.zeros(10), group, 2).any()
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    assert torch.equal(select_rollouts(advantage[order], group[order], 2), two[order])


def test_of_each_row_the_worked_tokens():
    mask = T([[0, 1, 1, 1, 1, 1], [0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]]).bool()
    entropy = T([[9.0, 0.1, 0.5, 0.3, 0.5, 0.0]] * 3)
    advantage = T([[-2.0] * 6, [1.0] * 6, [1.0] * 6])
    chosen = select_tokens(advantage, entropy, mask, 0.2)
    assert chosen[0].tolist() == [False, False, True, False, False, False]  # the earlier of equals
    assert chosen[1].tolist() == [False, False, True, False, False, False]  # one at least
    assert not chosen[2].any()
    assert select_tokens(advantage, entropy, mask, 0.41)[0].nonzero()[:, 0].tolist() == [2, 3, 4]
    for scale in (0.01, 30.0):
        assert torch.equal(select_tokens(advantage, scale * entropy, mask, 0.2), chosen)
    with pytest.raises(ShapeError, match="must have one shape"):
        select_tokens(advantage[:1], entropy, mask, 0.5)


@pytest.mark.parametrize(("n", "share"), [(10, 0.7), (10, 0.1), (100, 0.07), (7, 0.5)])
def test_the_number_of_tokens_is_rounded_up_exactly(n, share):
    """0.7 * 10 and 0.07 * 100 are above 7 in floating point."""
    mask = torch.ones(1, n).bool()
    chosen = select_tokens(torch.ones(1, n), torch.rand(1, n), mask, share)
    assert chosen.sum().item() == {0.7: 7, 0.1: 1, 0.07: 7, 0.5: 4}[share]


@pytest.mark.parametrize(
    ("progress", "count", "share"),
    [(0.0, 4, 0.1), (0.5, 6, 0.3), (1.0, 8, 0.5), (0.125, 5, 0.15), (0.1, 4, 0.14)],
)
def test_the_worked_schedule(progress, count, share):
    found = Schedule()(progress)
    assert found[0] == count
    assert found[1] == pytest.approx(share)
    own = D3S()
    assert (own.count_start, own.count_end, own.share_start, own.share_end) == (4, 8, 0.1, 0.5)


def test_what_is_kept_when_everything_is_kept_is_grpo_or_gspo():
    entropy = random_tokens(rollouts(), 3).abs()
    assert_same(D3S(**ALL), GRPO(), entropy=entropy)
    sequence = D3S(**ALL, ratio="sequence", clip=3e-4, clip_high=4e-4)
    assert_same(sequence, GSPO(), entropy=entropy)


def prepared_at(goal, batch, progress):
    batch = batch.with_columns(progress=torch.full((len(batch.ids),), progress))
    return prepared(goal, batch, entropy=random_tokens(batch, 3).abs())


@pytest.mark.parametrize(("progress", "tokens"), [(0.0, [1, 1, 2, 3]), (1.0, [2, 1, 3, 4])])
def test_the_schedule_decides_what_is_kept(progress, tokens):
    """Of groups of three two completions stay, of 2, 4, 1 and 5 tokens; K is 0.5, then 0.75."""
    goal = D3S(count_start=2, count_end=2, share_start=0.5, share_end=0.75)
    batch = rollouts(rewards=[1.0, 0.0, 0.9, 2.0, -2.0, -1.0], lengths=[2, 3, 7, 1, 4, 5])
    ready = prepared_at(goal, batch, progress)
    assert ready.column("reward").tolist() == [1.0, 2.0, -2.0, -1.0]
    assert ready.target.sum(-1).tolist() == tokens


def test_advantages_are_the_whole_groups_and_means_are_over_what_is_kept():
    batch = rollouts(rewards=[1.0, 0.0, 0.9, 2.0, -2.0, -1.0])
    goal = D3S(count_start=2, count_end=2, share_start=0.5, share_end=0.5)
    ready = prepared_at(goal, batch, 0.0)
    whole = prepared(GRPO(), batch).column("advantage")
    rows = [0, 3, 4, 5]
    kept = ready.column("advantage")[ready.target]
    torch.testing.assert_close(kept, whole[rows][ready.target])

    def by_hand(x):
        total = 0.0
        for row in range(4):
            a = ready.column("advantage")[row][ready.target[row]].double()
            u = x[row][ready.target[row]].exp()
            total = total - torch.minimum(u * a, u.clamp(0.8, 1.2) * a).mean() / 4
        return total

    assert_gradient(by_hand, goal, ready, random_tokens(ready, 4, 0.4))


def test_the_ratio_of_a_completion_is_that_of_all_its_tokens():
    batch = rollouts()
    goal = D3S(count_start=8, share_start=0.4, share_end=0.4, ratio="sequence")
    ready = prepared_at(goal, batch, 0.0)
    assert torch.equal(ready.target, batch.target)
    own = ready.column("token_share")
    assert (own > 0).sum(-1).tolist() == [1, 2, 3, 1, 2, 2]
    assert own.sum(-1).tolist() == pytest.approx([2, 4, 7, 1, 3, 5])  # their mean counts
    shift = random_tokens(batch, 4, 0.05)

    def by_hand(x):
        total = 0.0
        for row in range(6):
            mask = batch.target[row]
            s, a = x[row][mask].mean().exp(), ready.column("advantage")[row, 1].double()
            total = total - torch.minimum(s * a, s.clamp(0.8, 1.2) * a) / 6
        return total

    assert_gradient(by_hand, goal, ready, shift)  # the same all along: K is not seen


def test_equal_rewards_everywhere_leave_nothing_and_cost_nothing():
    ready = prepared_at(D3S(), rollouts(rewards=[0.95] * 6), 0.0)
    assert not ready.target.any()
    assert step(D3S(), ready, torch.zeros(ready.shape))[0] == 0
    alone = prepared_at(D3S(), rollouts([3], [1.0], [0]), 0.0)
    assert not alone.target.any()


@pytest.mark.parametrize(
    "change",
    [{"count_start": 1}, {"share_end": 0.0}, {"cross": 1.5}, {"ratio": "row"}, {"clip": 0.0}],
)
def test_impossible_settings_are_refused(change):
    with pytest.raises(InputError):
        D3S(**change)
