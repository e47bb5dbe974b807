"""DPO: values by hand, and the fixed point that its derivation promises."""

import math

import pytest
import torch

from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError
from tokenry.core.scores import Scores
from tokenry.learn.preference.dpo import DPO, dpo_loss
from tokenry.tasks.worlds.preference import PreferenceWorld


def test_loss_of_a_known_margin():
    loss = dpo_loss(torch.tensor([2.0]), torch.tensor([-1.0]), beta=0.5)
    assert float(loss) == pytest.approx(math.log1p(math.exp(-1.5)))


def test_margins_of_1e5_do_not_overflow():
    margin = torch.tensor([1e5, -1e5], requires_grad=True)
    loss = dpo_loss(margin, torch.zeros(2), beta=1.0)
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([0.0, 1e5])
    assert margin.grad is not None
    assert margin.grad.tolist() == pytest.approx([0.0, -1.0])


def test_sums_over_tokens_so_length_matters():
    batch = TokenBatch.from_ids([[0, 1, 1], [0, 1]], group=[0, 0])
    policy = Scores(batch.ids, batch.target, logprob=torch.tensor([[0, -1.0, -1.0], [0, -1.0, 0]]))
    reference = Scores(batch.ids, batch.target, logprob=torch.tensor([[0, -2.0, -2], [0, -2.0, 0]]))
    metrics = DPO(beta=1.0)(batch, policy, reference).metrics
    assert metrics["rewards/chosen"].tolist() == [2.0]
    assert metrics["rewards/rejected"].tolist() == [1.0]
    assert metrics["length/chosen"].tolist() == [2.0]


def test_the_closed_form_optimum_is_a_stationary_point_of_the_expected_loss():
    """At pi = argmax E[r] - beta KL the implicit margin is the true one, so the loss under
    Bradley-Terry labels has zero derivative with respect to every margin."""
    world = PreferenceWorld(seed=3, vocabulary=4, length=3, liked=1, disliked=1)
    beta, generator = 0.7, torch.Generator().manual_seed(0)
    optimum = world.optimum(beta)
    pairs = world.pairs(200, generator)
    ratio = [
        optimum.sequence_logprob(side) - world.language.sequence_logprob(side)
        for side in (pairs.chosen, pairs.rejected)
    ]
    gap = world.reward(pairs.chosen) - world.reward(pairs.rejected)
    torch.testing.assert_close(beta * (ratio[0] - ratio[1]), gap)
    margin = (ratio[0] - ratio[1]).requires_grad_()
    zero, preferred = torch.zeros_like(margin), torch.sigmoid(gap)
    expected = preferred * dpo_loss(margin, zero, beta=beta) + (1 - preferred) * dpo_loss(
        zero, margin, beta=beta
    )
    (slope,) = torch.autograd.grad(expected.sum(), margin)
    assert slope.abs().max() < 1e-10


def test_needs_a_reference():
    batch = TokenBatch.from_ids([[0, 1], [0, 1]], group=[0, 0])
    policy = Scores(batch.ids, batch.target, logprob=torch.zeros(2, 2))
    with pytest.raises(InputError, match="reference"):
        DPO()(batch, policy, None)
