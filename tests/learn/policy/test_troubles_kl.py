"""Trouble 12: each estimator of the KL is right in one place and wrong in another (OpenRLHF#1309).

In the loss: k2, k3 and what the ratio makes of them are `test_expected_gradient.py`'s
`test_the_regularisers_gradient_is_the_divergences`; here k1, and all of them in the reward.
"""

from dataclasses import dataclass

import pytest
import torch

from tokenry.core.kl_estimators import k1, k2, k3
from tokenry.lab.expected_updates import group_loss
from tokenry.learn.policy.axes import KL, RewardToGo, TokenReward
from tokenry.learn.policy.gradient import PolicyGradient
from tokenry.learn.policy.presets import GRPO
from tokenry.tasks.worlds.enumerable import EnumerableWorld

WORLD = EnumerableWorld(vocabulary=3, length=2)
POLICY, REFERENCE = WORLD.table(1).detach(), WORLD.table(5).detach()
ALL = tuple(range(len(WORLD.texts)))


def expected(goal):
    """The gradient of the sum over all texts of p(text) loss(text)."""
    table = POLICY.clone().requires_grad_()
    chance = WORLD.probability(POLICY).detach()
    total = sum(
        chance[number] * group_loss(goal, WORLD, (number,), POLICY, table, {"reference": REFERENCE})
        for number in ALL
    )
    return torch.autograd.grad(total, table)[0]


def whole_kl():
    """The gradient of KL(policy || reference) of whole texts."""
    table = POLICY.clone().requires_grad_()
    chance = WORLD.probability(table)
    reference = WORLD.logprob(REFERENCE, ALL).sum(-1)
    return torch.autograd.grad((chance * (chance.log() - reference)).sum(), table)[0]


@dataclass(frozen=True)
class Estimate:
    """The reward -k(log pi - log pi_ref) of every token, a constant."""

    estimator: object
    rollout_needs = ("policy.logprob", "reference.logprob")

    def __call__(self, rollouts):
        shift = rollouts.old_logprob - rollouts.logprob_of("reference")
        return torch.where(rollouts.mask, -self.estimator(shift), 0.0)


def in_reward(reward):
    advantage = RewardToGo(reward, baseline="none")
    return expected(PolicyGradient(advantage, aggregation="sequence-sum"))


def silent(rollouts):
    return torch.zeros(len(rollouts.batch.ids))


def in_loss(**options):
    return expected(
        PolicyGradient(silent, regularizer=KL(1.0, **options), aggregation="sequence-sum")
    )


def test_k1_in_the_loss_has_no_gradient():
    assert in_loss(estimator="k1").abs().max() < 1e-12
    assert in_loss(estimator="k2").abs().max() > 0.05
    assert in_loss(estimator="k1", corrected=True).abs().max() > 0.05


def test_k1_in_the_reward_has_the_kls_and_the_others_have_not():
    found = in_reward(Estimate(k1))
    torch.testing.assert_close(found, whole_kl(), rtol=1e-6, atol=1e-9)
    # the reward that is at hand is this one
    own = TokenReward(1.0)
    given = expected(PolicyGradient(RewardToGo(own, baseline="none"), aggregation="sequence-sum"))
    reward_alone = in_reward(final_reward)
    torch.testing.assert_close(given - reward_alone, whole_kl(), rtol=1e-6, atol=1e-9)
    for other in (k2, k3):
        assert not torch.allclose(in_reward(Estimate(other)), whole_kl(), rtol=1e-2, atol=1e-3)


def final_reward(rollouts):
    last = rollouts.mask & (rollouts.mask.cumsum(-1) == rollouts.mask.sum(-1, keepdim=True))
    return torch.where(last, rollouts.reward[:, None], 0.0)


@pytest.mark.parametrize(("estimator", "unbiased"), [(k1, True), (k2, False), (k3, True)])
def test_the_value_of_k2_alone_is_biased(estimator, unbiased):
    own, its = POLICY.log_softmax(-1), REFERENCE.log_softmax(-1)
    exact = (own.exp() * (own - its)).sum(-1)
    mean = (own.exp() * estimator(own - its)).sum(-1)
    assert torch.allclose(mean, exact, rtol=1e-9) == unbiased


def test_grpos_kl_is_the_papers_unless_it_is_corrected():
    assert GRPO(beta=0.1).composed().regularizer == KL(0.1, "k3", corrected=False)
    assert GRPO(beta=0.1, corrected=True).composed().regularizer == KL(0.1, "k3", corrected=True)
    assert GRPO().composed().regularizer is None
