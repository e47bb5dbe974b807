"""Expected updates: exact against other ways to the same sums, unbiased where they should be."""

import math

import pytest
import torch

from tokenry.lab.expected_updates import expected_update, group_loss, policy_gradient
from tokenry.learn.policy.axes import GroupAdvantage
from tokenry.learn.policy.gradient import PolicyGradient
from tokenry.learn.policy.presets import DAPO, GRPO
from tokenry.tasks.worlds.enumerable import EnumerableWorld

WORLD = EnumerableWorld(vocabulary=3, length=2)
OLD = WORLD.table(1).detach()


def reinforce(**options):
    return PolicyGradient(GroupAdvantage(scale="none", **options), aggregation="sequence-sum")


def test_the_policy_gradient_is_that_of_differences():
    gradient, step = policy_gradient(WORLD, OLD), 1e-6
    for entry in ((0, 1), (2, 0)):
        moved = []
        for sign in (1, -1):
            table = OLD.clone()
            table[entry] += sign * step
            moved.append(float((WORLD.probability(table) * WORLD.reward).sum()))
        assert float(gradient[entry]) == pytest.approx((moved[0] - moved[1]) / (2 * step), abs=1e-8)


@pytest.mark.parametrize(
    ("objective", "factor"),
    [
        (reinforce(center=False), 1.0),
        (reinforce(leave_one_out=True), 1.0),
        (reinforce(), 2 / 3),  # the mean holds the completion itself: 1 - 1 / n
    ],
)
def test_sums_over_whole_completions_are_unbiased(objective, factor):
    update = expected_update(objective, WORLD, OLD, size=3)
    torch.testing.assert_close(update.mean, factor * policy_gradient(WORLD, OLD))
    assert update.cosine(policy_gradient(WORLD, OLD)) == pytest.approx(1)


def test_a_baseline_lowers_the_variance_and_a_larger_group_divides_it():
    plain = expected_update(reinforce(center=False), WORLD, OLD, size=2)
    twice = expected_update(reinforce(center=False), WORLD, OLD, size=4)
    assert twice.variance == pytest.approx(plain.variance / 2)
    far = PolicyGradient(lambda rollouts: rollouts.reward + 5, aggregation="sequence-sum")
    centred = expected_update(reinforce(leave_one_out=True), WORLD, OLD, size=4)
    assert centred.spread < expected_update(far, WORLD, OLD, size=4).spread
    assert twice.spread == pytest.approx(math.sqrt(twice.variance) / float(twice.mean.norm()))


@pytest.mark.parametrize("objective", [GRPO(beta=0.1), DAPO()])
def test_groups_in_every_order_give_the_same(objective):
    table = (OLD + 0.3 * WORLD.table(2).detach()).requires_grad_()
    frozen = {"reference": WORLD.table(5).detach()}
    update = expected_update(objective, WORLD, OLD, table, size=2, frozen=frozen)
    chance, mean, square = WORLD.probability(OLD), torch.zeros_like(OLD), 0.0
    for chosen in WORLD.groups(2):
        loss = group_loss(objective, WORLD, chosen, OLD, table, frozen)
        gradient = torch.autograd.grad(loss, table, allow_unused=True)[0]
        mean -= chance[list(chosen)].prod() * gradient
        square += float(chance[list(chosen)].prod() * gradient.square().sum())
    torch.testing.assert_close(update.mean, mean)
    assert update.variance == pytest.approx(square - float(mean.square().sum()))
    assert update.cosine(policy_gradient(WORLD, OLD)) < 1 - 1e-3  # both are biased


def test_what_learns_nothing_has_no_direction():
    update = expected_update(PolicyGradient(lambda rollouts: 0 * rollouts.reward), WORLD, OLD)
    assert update.mean.abs().max() == 0
    assert update.cosine(policy_gradient(WORLD, OLD)) == 0
    assert update.spread == math.inf
