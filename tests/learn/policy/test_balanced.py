"""Balanced Aggregation: the published weights, its identities, and where it is GRPO or DAPO."""

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
from tokenry.learn.policy.balanced import Balanced
from tokenry.learn.policy.gradient import PolicyGradient
from tokenry.learn.policy.groups import GroupAdvantage, balanced_weights
from tokenry.learn.policy.presets import DAPO, GRPO

REWARD_ITSELF = GroupAdvantage(center=False, scale="none")
EXAMPLE = ([2, 4, 10, 4], [1.0, 1.0, -1.0, -1.0], [0, 0, 0, 0])


def token_weights(aggregation, lengths, rewards, group):
    """What each completion's tokens weigh: the loss's slope in l, with A = the reward, u = 1."""
    batch = rollouts(lengths, rewards, group)
    goal = PolicyGradient(REWARD_ITSELF, aggregation=aggregation)
    ready = prepared(goal, batch)
    _, slope, _ = step(goal, ready, torch.zeros(batch.shape))
    weights = -slope / ready.column("advantage").masked_fill(~batch.target, 1.0)
    for row, mask in zip(weights, batch.target, strict=True):
        assert row[mask].unique().numel() == 1
    return weights[:, 1].tolist()


def test_the_worked_weights_of_the_three_means():
    assert token_weights("balanced", *EXAMPLE) == pytest.approx([1 / 12] * 2 + [1 / 28] * 2)
    assert token_weights("token-mean", *EXAMPLE) == pytest.approx([0.05] * 4)
    sequence = token_weights("sequence-mean", *EXAMPLE)
    assert sequence == pytest.approx([0.125, 0.0625, 0.025, 0.0625])


@pytest.mark.parametrize(
    ("aggregation", "loss"), [("balanced", 0.0), ("token-mean", 0.4), ("sequence-mean", 0.0)]
)
def test_the_worked_losses(aggregation, loss):
    batch = rollouts(*EXAMPLE)
    goal = PolicyGradient(REWARD_ITSELF, aggregation=aggregation)
    found = step(goal, prepared(goal, batch), torch.zeros(batch.shape))[0]
    assert found.item() == pytest.approx(loss, abs=1e-7)


def test_longer_bad_completions_change_nothing_here_and_something_elsewhere():
    longer = ([2, 4, 20, 8], *EXAMPLE[1:])

    def pull(aggregation, example):
        """The loss of terms that are the same all over a completion."""
        batch = rollouts(*example)
        goal = PolicyGradient(REWARD_ITSELF, aggregation=aggregation)
        terms = on(batch, [[0.1 * (row + 1)] * n for row, n in enumerate(example[0])])
        return step(goal, prepared(goal, batch), terms)[0].item()

    assert pull("balanced", longer) == pytest.approx(pull("balanced", EXAMPLE), abs=1e-7)
    assert abs(pull("token-mean", longer) - pull("token-mean", EXAMPLE)) > 0.05


@pytest.mark.parametrize("lengths", [[1, 9, 2, 5, 3], [8, 1, 1, 1, 30]])
def test_binary_rewards_pull_both_ways_with_equal_mass(lengths):
    batch = rollouts(lengths, [1.0, 0.0, 0.0, 1.0, 0.0], [3] * 5)
    loss, slope, _ = step(Balanced(), prepared(Balanced(), batch), torch.zeros(batch.shape))
    assert loss.item() == pytest.approx(0, abs=1e-7)
    assert slope[slope > 0].sum().item() == pytest.approx(-slope[slope < 0].sum().item(), rel=1e-6)


def test_equal_lengths_make_it_grpo_and_one_sign_the_token_mean():
    batch = rollouts([3] * 6)
    shift = random_tokens(batch, 3, 0.4)
    one, other = (step(goal, prepared(goal, batch), shift) for goal in (Balanced(), GRPO()))
    for found, wanted in zip(one[:2], other[:2], strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)
    positive = replace(DAPO(clip_high=0.2, dynamic=False).composed(), advantage=REWARD_ITSELF)
    batch = rollouts([2, 5, 3], [1.0, 2.0, 0.5], [0, 0, 0])
    balanced = replace(positive, aggregation="balanced")
    results = [step(g, prepared(g, batch), random_tokens(batch, 3)) for g in (positive, balanced)]
    torch.testing.assert_close(results[0][1], results[1][1], rtol=0, atol=1e-10)


def test_against_the_definition_with_unequal_lengths_ties_and_two_groups():
    batch = rollouts(rewards=[1.0, 0.0, 0.5, 2.0, 0.75, 1.0])
    ready = prepared(Balanced(clip=0.3), batch)
    advantage = ready.column("advantage").double()
    assert advantage[4, 1] == 0  # of rewards 1, 0.5, 0.75 the last is the mean
    assert advantage[5, 1] == 0

    def by_hand(x):
        terms = -torch.minimum(x.exp() * advantage, x.exp().clamp(0.7, 1.3) * advantage)
        total = 0.0
        for rows in ([0, 2, 4], [1, 3, 5]):
            for sign in (1, -1):
                own = [row for row in rows if advantage[row].sum() * sign > 0]
                tokens = sum(int(batch.target[row].sum()) for row in own)
                total = total + len(own) / 3 * sum(terms[row].sum() for row in own) / tokens / 2
        return total

    assert_gradient(by_hand, Balanced(clip=0.3), ready, random_tokens(batch, 5, 0.4))


def test_weights_sum_to_one_without_ties_and_padding_and_order_do_not_matter():
    batch = rollouts(rewards=[1.0, -1.0, 2.0, 1.0, -2.0, -1.0])
    advantage = batch.column("reward")[:, None].expand(batch.shape)
    weights = balanced_weights(advantage, batch.target, batch.group)
    assert (weights * batch.target).sum().item() == pytest.approx(1)
    order = torch.tensor([5, 2, 0, 3, 1, 4])
    shuffled = balanced_weights(advantage[order], batch.target[order], batch.group[order])
    torch.testing.assert_close(shuffled, weights[order])
    wide = torch.nn.functional.pad(batch.target, (2, 3))
    padded = balanced_weights(torch.nn.functional.pad(advantage, (2, 3)), wide, batch.group)
    torch.testing.assert_close(padded, weights)


def test_groups_in_micro_batches_add_up_to_the_whole():
    ready = prepared(Balanced(), rollouts())
    shift = random_tokens(ready, 8, 0.3)
    whole, gradient, _ = step(Balanced(), ready, shift)
    parts = []
    for number in (4, 9):
        rows = ready.group == number
        parts.append(step(Balanced(), ready.select(rows), shift[rows]))
        torch.testing.assert_close(parts[-1][1] / 2, gradient[rows], rtol=0, atol=1e-10)
    torch.testing.assert_close((parts[0][0] + parts[1][0]) / 2, whole, rtol=0, atol=1e-10)


def test_groups_of_one_and_equal_rewards_give_zero_loss_and_gradient():
    batch = rollouts([2, 3, 4], [1.0, 0.95, 0.95], [0, 1, 1])
    loss, gradient, _ = step(Balanced(), prepared(Balanced(), batch), random_tokens(batch, 2))
    assert loss == 0
    assert (gradient == 0).all()
    assert Balanced().unit == "pair"  # a micro-batch holds whole groups
    assert_same(Balanced(), replace(GRPO().composed(), aggregation="balanced"))
