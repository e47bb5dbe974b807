"""Advantages against hand cases, brute force and their own identities."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenry.core.errors import InputError, ShapeError
from tokenry.learn.policy.advantages import gae, positional_baseline, reward_to_go, whiten
from tokenry.learn.policy.groups import group_advantage, has_spread, most_of_group


def random_rollouts(seed, rows=4, length=6, dtype=torch.float64):
    """Rewards, values and a mask with prompts, ends and a hole of any kind."""
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, rows, length, generator=generator, dtype=dtype)
    mask = torch.rand(rows, length, generator=generator) < 0.6
    return rewards, values, mask


def by_hand(rewards, values, mask, gamma, lam):
    """The definition, A_t = sum_k (gamma lam)^k delta_{t+k}, on the list of target tokens."""
    advantages = torch.zeros_like(rewards)
    for row in range(len(rewards)):
        places = mask[row].nonzero()[:, 0].tolist()
        r = [float(rewards[row, t]) for t in places]
        v = [float(values[row, t]) for t in places] + [0.0]
        deltas = [r[i] + gamma * v[i + 1] - v[i] for i in range(len(r))]
        for i, place in enumerate(places):
            advantages[row, place] = sum(
                (gamma * lam) ** (k - i) * deltas[k] for k in range(i, len(r))
            )
    return advantages


def test_worked_example():
    rewards, values = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.2, 0.4, 0.6]])
    advantages, returns = gae(rewards, values, torch.ones(1, 3, dtype=torch.bool), 1.0, 1.0)
    torch.testing.assert_close(advantages, torch.tensor([[0.8, 0.6, 0.4]]))
    torch.testing.assert_close(returns, torch.ones(1, 3))


@given(st.integers(0, 10_000), st.floats(0, 1), st.floats(0, 1))
def test_gae_is_its_definition_on_the_target_tokens_alone(seed, gamma, lam):
    rewards, values, mask = random_rollouts(seed)
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    torch.testing.assert_close(advantages, by_hand(rewards, values, mask, gamma, lam))
    torch.testing.assert_close(returns, torch.where(mask, advantages + values, 0.0))


@given(st.integers(0, 10_000), st.floats(0, 1))
def test_lam_1_is_reward_to_go_minus_values_and_lam_0_is_delta(seed, gamma):
    rewards, values, mask = random_rollouts(seed)
    to_go = reward_to_go(rewards, mask, gamma)
    full = gae(rewards, values, mask, gamma, 1.0)[0]
    torch.testing.assert_close(full, torch.where(mask, to_go - values, 0.0))
    everywhere = torch.ones_like(mask)
    later = torch.cat([values[:, 1:], torch.zeros(len(values), 1)], 1)
    delta = gae(rewards, values, everywhere, gamma, 0.0)[0]
    torch.testing.assert_close(delta, rewards + gamma * later - values)


def test_garbage_outside_the_mask_does_not_matter_and_padding_adds_nothing():
    rewards, values, mask = random_rollouts(3)
    spoiled = [torch.where(mask, each, torch.nan) for each in (rewards, values)]
    for clean, other in zip(gae(rewards, values, mask), gae(*spoiled, mask), strict=True):
        torch.testing.assert_close(clean, other)
        assert (other[~mask] == 0).all()
    wide = [torch.nn.functional.pad(each, (2, 3)) for each in (rewards, values, mask)]
    torch.testing.assert_close(gae(*wide)[0][:, 2:-3], gae(rewards, values, mask)[0])


def test_half_precision_rewards_are_summed_in_float32():
    rewards = torch.ones(1, 400, dtype=torch.bfloat16)
    to_go = reward_to_go(rewards, torch.ones(1, 400, dtype=torch.bool))
    assert to_go.dtype == torch.float32
    assert float(to_go[0, 0]) == 400  # bfloat16 stops at 256


def test_the_baseline_is_the_mean_over_rows_that_got_as_far():
    """Completion positions count, not columns: the rows begin at different places."""
    returns = torch.tensor([[9.0, 2.0, 4.0], [6.0, 8.0, 9.0], [9.0, 9.0, 9.0]])
    mask = torch.tensor([[False, True, True], [True, True, False], [False, False, False]])
    got = positional_baseline(returns, mask)
    torch.testing.assert_close(got, torch.tensor([[0.0, 4.0, 6.0], [4.0, 6.0, 0.0], [0.0] * 3]))


def test_the_baseline_of_a_group_and_without_oneself():
    returns = torch.tensor([[1.0], [3.0], [5.0], [70.0]])
    mask = torch.ones(4, 1, dtype=torch.bool)
    group = torch.tensor([7, 7, 7, 2])
    assert positional_baseline(returns, mask, group)[:, 0].tolist() == [3, 3, 3, 70]
    alone = positional_baseline(returns, mask, group, leave_one_out=True)[:, 0].tolist()
    assert alone == [4, 3, 2, 0]


@given(st.integers(0, 10_000))
def test_advantages_over_the_baseline_sum_to_zero_at_every_position(seed):
    returns, _, mask = random_rollouts(seed)
    gap = torch.where(mask, returns - positional_baseline(returns, mask), 0.0)
    place = mask.cumsum(-1) - 1
    for position in range(mask.shape[1]):
        assert abs(float(gap[mask & (place == position)].sum())) < 1e-9


@given(st.integers(0, 10_000), st.floats(0.1, 100), st.floats(-50, 50))
def test_whitened_advantages_forget_scale_and_shift(seed, scale, shift):
    advantages, _, mask = random_rollouts(seed, length=9)
    if mask.sum() < 2:
        return
    white = whiten(advantages, mask)
    assert float(white[mask].mean()) == pytest.approx(0, abs=1e-9)
    assert float(white[mask].std(correction=0)) == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(whiten(scale * advantages + shift, mask), white)
    assert (white[~mask] == 0).all()


def test_whitening_without_shift_keeps_signs_and_equal_advantages_give_0():
    advantages, _, mask = random_rollouts(1)
    scaled = whiten(advantages, mask, shift_mean=False)
    assert torch.equal(scaled[mask].sign(), advantages[mask].sign())
    assert (whiten(torch.full((2, 3), 5.0), torch.ones(2, 3, dtype=torch.bool)) == 0).all()
    nothing = whiten(torch.ones(2, 3), torch.zeros(2, 3, dtype=torch.bool))
    assert (nothing == 0).all()


def test_bad_input_is_refused():
    rewards, values, mask = random_rollouts(0)
    with pytest.raises(InputError, match=r"1\.5"):
        gae(rewards, values, mask, gamma=1.5)
    with pytest.raises(ShapeError, match="mask"):
        gae(rewards, values[:, :2], mask)
    with pytest.raises(ShapeError, match="mask"):
        whiten(rewards, mask.float())


# ---- against the group


def test_one_bad_completion_among_equals_is_as_bad_as_its_reward():
    """The others' mean is 0.95 up to rounding; no spread of theirs is divided by."""
    reward = torch.tensor([0.0, *[0.95] * 7])
    advantage = group_advantage(
        reward, torch.zeros(8).long(), scale="none", leave_one_out=True, eps=0.0
    )
    assert advantage[0].item() == pytest.approx(-0.95, rel=1e-6)
    assert advantage[1:].tolist() == pytest.approx([0.95 / 7] * 7, rel=1e-5)
    for scale in ("group", "batch"):
        for loo in (False, True):
            scaled = group_advantage(
                reward, torch.zeros(8).long(), scale=scale, leave_one_out=loo, eps=0.0
            )
            assert scaled.isfinite().all()
            assert scaled.abs().max() < 3


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("leave_one_out", [False, True])
@pytest.mark.parametrize("size", [1, 3, 7, 8])
def test_rewards_that_are_equal_up_to_rounding_give_exactly_0(scale, leave_one_out, size):
    noise = 1 + 1.2e-7 * (torch.arange(size) % 2)
    options = {"scale": scale, "leave_one_out": leave_one_out, "eps": 0.0}
    for level in (0.95, -300.0, 1e-8):
        group = torch.zeros(size).long()
        assert (group_advantage(level * noise, group, **options) == 0).all()
    assert (group_advantage(torch.zeros(size), torch.zeros(size).long(), **options) == 0).all()


@pytest.mark.parametrize(("gap", "some"), [(0.9e-6, False), (1.2e-6, True)])
def test_the_resolution_of_rewards_is_a_millionth_of_the_largest(gap, some):
    reward = torch.tensor([-5.0, -5.0 + 5 * gap], dtype=torch.float64)
    assert has_spread(reward, torch.zeros(2).long()).tolist() == [some, some]
    advantage = group_advantage(reward, torch.zeros(2).long(), eps=0.0)
    half = 0.5**0.5
    assert advantage.tolist() == pytest.approx([-half, half] if some else [0, 0])
    # the level of another group does not matter
    both = torch.cat([reward, torch.tensor([1e9, 0.0])])
    assert has_spread(both, torch.tensor([0, 0, 1, 1])).tolist() == [some, some, True, True]


def test_groups_are_by_index_whatever_their_sizes_and_places():
    """Sizes 4, 3, 4, interleaved: each is what it would be alone."""
    group = torch.tensor([7, 2, 5, 5, 7, 2, 7, 5, 2, 5, 7])
    reward = torch.randn(11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for options in ({}, {"scale": "none", "leave_one_out": True}, {"unbiased": False}):
        advantage = group_advantage(reward, group, **options)
        for number, size in ((7, 4), (2, 3), (5, 4)):
            rows = group == number
            assert int(rows.sum()) == size
            alone = group_advantage(reward[rows], torch.zeros(size).long(), **options)
            torch.testing.assert_close(advantage[rows], alone)
        order = torch.randperm(11, generator=torch.Generator().manual_seed(1))
        permuted = group_advantage(reward[order], group[order], **options)
        torch.testing.assert_close(permuted, advantage[order])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_rewards_that_are_no_numbers_are_refused_by_row(bad):
    with pytest.raises(InputError, match=r"completion 1 is (nan|inf)"):
        group_advantage(torch.tensor([0.0, bad, 1.0]), torch.zeros(3).long())


def test_the_largest_of_each_group_stands_beside_all_its_rows():
    group = torch.tensor([7, 2, 7, 2, 9])
    values = torch.tensor([-3.0, -1.0, -2.0, -torch.inf, 0.5])
    assert most_of_group(values, group).tolist() == [-2.0, -1.0, -2.0, -1.0, 0.5]
    assert most_of_group(torch.tensor([-3, 4, -5, 1, 0]), group).tolist() == [-3, 4, -3, 4, 0]
    assert most_of_group(values[:0], group[:0]).shape == (0,)
