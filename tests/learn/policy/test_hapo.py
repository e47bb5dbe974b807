"""HAPO: its worked advantages, clips and redistribution; dual-clipped GRPO at its neutral end."""

import math
from dataclasses import replace

import pytest
import torch

from policy_variants import (
    assert_gradient,
    assert_same,
    prepared,
    random_tokens,
    rollouts,
    step,
)
from tokenry.core.errors import InputError
from tokenry.learn.policy.groups import GroupAdvantage, group_advantage, some_spread
from tokenry.learn.policy.hapo import (
    HAPO,
    AdaptiveBound,
    Redistribute,
    token_group_advantage,
)
from tokenry.learn.policy.normalised_entropy import normalised_entropy
from tokenry.learn.policy.presets import GRPO
from tokenry.learn.policy.rollout_batch import RolloutBatch
from tokenry.learn.policy.surrogate import Clip

T = torch.tensor


def test_the_worked_advantages_sum_to_zero_over_the_tokens():
    mask = T([[1, 1, 1], [1, 0, 0]]).bool()
    found = token_group_advantage(T([1.0, 0.0]).double(), mask, T([0, 0]), eps=0.0)
    assert found.tolist() == pytest.approx([0.57735, -1.73205], abs=1e-5)
    assert (found[:, None] * mask).sum().item() == pytest.approx(0, abs=1e-12)
    default = token_group_advantage(T([1.0, 0.0]).double(), mask, T([0, 0]))
    assert default[0].item() == pytest.approx(0.25 / (math.sqrt(3) / 4 + 1e-6), rel=1e-12)


@pytest.mark.parametrize(("long", "falls_back"), [(24, False), (25, True), (26, True)])
def test_a_group_with_an_advantage_of_5_has_grpos(long, falls_back):
    """One bad token against n good ones: |A| = sqrt n, here without eps."""
    mask = torch.arange(30) < T([[long], [1], [2], [2]])
    reward, group = T([1.0, 0.0, 1.0, 0.0]).double(), T([0, 0, 1, 1])
    found = token_group_advantage(reward, mask, group, largest=5.0 - 1e-9, eps=0.0)
    wanted = math.sqrt(0.5) if falls_back else 1 / math.sqrt(long)
    assert found[0].item() == pytest.approx(wanted)
    assert found[2].item() == pytest.approx(1.0)  # its own group has no such token
    assert HAPO().largest == 5.0


def columns(place, ratio=1.0):
    """A batch of one row whose tokens have these normalised entropies."""
    batch = rollouts([len(place)], [1.0], [0])
    values = T([[0.0, *place]], dtype=torch.float64)
    return RolloutBatch(batch.with_columns(normalised_entropy=values))


def test_the_worked_clips():
    view = columns([-1.0, -0.5, 0.0, 0.5, 1.0])
    low, high = (AdaptiveBound(0.2, 1.0, upper)(view)[0, 1:] for upper in (False, True))
    assert (1 - low).tolist() == pytest.approx([0.6, 0.7, 0.8, 0.8, 0.8])
    assert (1 + high).tolist() == pytest.approx([1.2, 1.2, 1.2, 1.3, 1.4])
    half = AdaptiveBound(0.2, 0.5, True)(view)[0, 1:]
    assert half.tolist() == pytest.approx([0.2, 0.2, 0.2, 0.25, 0.3])


@pytest.mark.parametrize(
    ("place", "ratio", "value"),
    [
        (1.0, 1.3, 2.0),
        (1.0, 1.0, 1.0),
        (1.0, 1.19, 1.0),  # inside up to 1 + 0.4 / 2
        (1.0, 1.21, 2.0),
        (1.0, 0.89, 2.0),  # outside below 1 - 0.2 / 2
        (-0.5, 1.0, 0.5),
        (-0.5, 0.5, 1.0),
        (-0.5, 0.86, 0.5),  # inside down to 1 - 0.3 / 2
        (-0.5, 0.84, 1.0),
        (-0.5, 1.11, 1.0),
    ],
)
def test_the_worked_redistribution(place, ratio, value):
    low, high = (AdaptiveBound(0.2, 1.0, upper) for upper in (False, True))
    ratio = T([[1.0, ratio]], dtype=torch.float64)
    found = Redistribute(low, high, 1.0)(torch.ones_like(ratio), ratio, columns([place]))
    assert found[0, 1].item() == pytest.approx(value)


def test_without_adapting_and_with_equal_lengths_it_is_dual_clipped_grpo():
    batch = rollouts([3] * 6)
    neutral = HAPO(alpha=0.0, beta=0.0)
    plain = replace(
        GRPO().composed(),
        advantage=GroupAdvantage(unbiased=False, eps=1e-6),
        clip=Clip(0.2, 0.2, 10.0),
        aggregation="token-mean",
        select=(some_spread,),
    )
    entropy = random_tokens(batch, 3).abs()
    assert_same(neutral, plain, batch=batch, entropy=entropy, moves=(0.0, 0.4, 2.0))


def test_against_the_definition_written_out():
    batch = rollouts()
    entropy = random_tokens(batch, 6).abs() + 0.01
    goal = HAPO(dual=1.4)
    ready = prepared(goal, batch, entropy=entropy)
    place = normalised_entropy(entropy, batch.target)[0]
    mean = {4: (2 * 1 + 7 * 0.25 + 3 * 2) / 12, 9: (4 * 0 + 1 * 2 - 5) / 10}
    group, reward = [4, 9, 4, 9, 4, 9], [1.0, 0.0, 0.25, 2.0, 2.0, -1.0]
    lengths = (2, 4, 7, 1, 3, 5)

    def by_hand(x):
        total = 0.0
        for row, n in enumerate(lengths):
            mine = [k for k in range(6) if group[k] == group[row]]
            tokens = sum(lengths[k] for k in mine)
            variance = sum(lengths[k] * (reward[k] - mean[group[row]]) ** 2 for k in mine) / tokens
            base = (reward[row] - mean[group[row]]) / (math.sqrt(variance) + 1e-6)
            for t in range(1, n + 1):
                h, u = float(place[row, t]), x[row, t].exp()
                low, high = 0.2 * (1 - min(h, 0.0)), 0.2 * (1 + max(h, 0.0))
                inside = 1 - low / 2 < u.item() < 1 + high / 2
                a = base * (1 + h) if inside == (h <= 0) else base
                least = torch.minimum(u * a, u.clamp(1 - low, 1 + high) * a)
                total = total - (least.clamp_min(1.4 * a) if a < 0 else least) / sum(lengths)
        return total

    for seed in range(3):
        assert_gradient(by_hand, goal, ready, random_tokens(batch, seed, 0.3), atol=1e-6)


def test_groups_without_spread_are_left_out_and_stale_ratios_stay_finite():
    batch = rollouts([2, 3, 4, 1], [0.95, 0.95, 1.0, 0.0], [0, 0, 1, 1])
    entropy = random_tokens(batch, 6).abs()
    ready = prepared(HAPO(), batch, entropy=entropy)
    assert ready.group is not None
    assert ready.group.tolist() == [1, 1]
    for size in (1e3, -1e3):
        loss, gradient, _ = step(HAPO(), ready, torch.full(ready.shape, size).double())
        assert loss.isfinite()
        assert gradient.isfinite().all()
    alone = prepared(HAPO(dynamic=False), rollouts([3], [1.0], [0]), entropy=torch.ones(1, 4))
    assert (alone.column("advantage") == 0).all()
    torch.testing.assert_close(
        token_group_advantage(T([0.95] * 3), torch.ones(3, 2).bool(), T([0, 0, 0])),
        group_advantage(T([0.95] * 3), T([0, 0, 0])),
    )


@pytest.mark.parametrize(
    "change", [{"pivot": 1.1}, {"clip": 1.0}, {"alpha": -0.1}, {"beta": 2.0}, {"dual": 1.0}]
)
def test_impossible_settings_are_refused(change):
    with pytest.raises(InputError):
        HAPO(**change)
