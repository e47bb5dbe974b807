"""SALSA: PPO whose reference is a soup; both ends of the soup, and its first penalty."""

import copy

import pytest
import torch

from tokenry.lab.on_policy_world import roll_out, train_on_policy
from tokenry.learn.objective import objective
from tokenry.learn.policy.ppo import PPO
from tokenry.learn.policy.rollout_batch import RolloutBatch
from tokenry.learn.policy.salsa import SALSA
from tokenry.model.averaging import soup_models
from tokenry.model.score import score


@pytest.fixture(scope="module")
def models(tiny_llama):
    """Two models that were moved apart from one start, and a batch that the first one wrote."""
    made = []
    for seed in (1, 2):
        generator = torch.Generator().manual_seed(seed)
        model = copy.deepcopy(tiny_llama)
        with torch.no_grad():
            for weight in model.parameters():
                weight += 0.03 * torch.randn(weight.shape, generator=generator)
        made.append(model)
    prompts = torch.full((8, 2), 5)
    batch = roll_out(made[0], prompts, max_new_tokens=6, eos=1)
    return (*made, batch.with_columns(reward=torch.zeros(8)))


def rewards(goal, batch, policy, reference):
    def logprob(model):
        return score(model, batch, ("logprob",)).need("logprob")

    columns = {"old_logprob": logprob(policy), "reference_logprob": logprob(reference)}
    return goal.reward(RolloutBatch(batch.with_columns(**columns)))


def test_at_both_ends_of_the_line_it_is_ppo_with_that_model_as_reference(models):
    first, second, batch = models
    for alpha, reference in ((1.0, first), (0.0, second)):
        blended = soup_models([first, second], [alpha, 1 - alpha])
        assert torch.equal(
            rewards(SALSA(), batch, first, blended), rewards(PPO(), batch, first, reference)
        )


def test_the_first_penalty_is_positive_for_the_soup_and_0_for_ppo(models):
    first, second, batch = models
    soup = soup_models([first, second])
    assert (rewards(PPO(), batch, first, first) == 0).all()
    penalty = -rewards(SALSA(), batch, first, soup).sum(-1).mean()
    assert float(penalty) > 1e-3


def test_the_soup_is_left_alone_by_training(models):
    first, second, _ = models
    soup = soup_models([first, second])
    before = copy.deepcopy(soup.state_dict())
    policy, points = train_on_policy(
        SALSA(),
        first,
        torch.full((1, 2), 5),
        lambda batch: (batch.ids == 7).sum(-1).float(),
        soup,
        steps=2,
        batch_size=8,
        max_new_tokens=4,
    )
    assert all(torch.equal(soup.state_dict()[name], before[name]) for name in before)
    assert all(weight.grad is None for weight in soup.parameters())
    start = dict(first.named_parameters())
    assert any(not torch.equal(weight, start[name]) for name, weight in policy.named_parameters())
    assert points[0].kl is not None


def test_is_filed_under_its_paper():
    assert {entry.key: entry.paper for entry in objective}["salsa"] == 48
