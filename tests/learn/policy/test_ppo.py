"""PPO: the baseline's rewards, advantages and loss, with and without a critic."""

import pytest
import torch

from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError
from tokenry.core.scores import Scores
from tokenry.learn.objective import objective
from tokenry.learn.policy.advantages import gae, positional_baseline, reward_to_go, whiten
from tokenry.learn.policy.ppo import PPO
from tokenry.learn.policy.rollout_batch import RolloutBatch


def rollouts(seed=0, rows=6, rewards=None):
    """Rollouts of different lengths, and float64 log-probabilities of two models."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [2 + (row * 3) % 4 for row in range(rows)]
    batch = TokenBatch.from_ids([[0] + [1] * length for length in lengths])
    shape = (rows,) if rewards is None else (rows, rewards)
    batch = batch.with_columns(reward=torch.randn(shape, generator=generator))
    policy, reference = -torch.rand(2, *batch.shape, generator=generator, dtype=torch.float64)
    return batch, policy, reference


def scores(batch, logprob, **fields):
    return Scores(batch.ids, batch.target, logprob=logprob, **fields)


def prepared(goal, batch, policy, reference, **others):
    return goal.prepare(batch, scores(batch, policy), scores(batch, reference), **others)


def test_prepare_is_penalised_rewards_gae_and_whitening():
    batch, policy, reference = rollouts()
    got = prepared(PPO(kl=0.3, lam=0.9), batch, policy, reference)
    rewards = -0.3 * torch.where(batch.target, policy - reference, 0.0)
    last = batch.target.sum(-1)
    rewards[torch.arange(len(last)), last] += batch.column("reward")
    values = positional_baseline(reward_to_go(rewards, batch.target), batch.target)
    wanted = whiten(gae(rewards, values, batch.target, 1.0, 0.9)[0], batch.target)
    torch.testing.assert_close(got.column("advantage").double(), wanted, atol=1e-6, rtol=1e-5)
    assert torch.equal(got.column("old_logprob"), policy)


def test_the_first_update_follows_the_policy_gradient_per_token():
    batch, policy, reference = rollouts()
    batch = prepared(PPO(), batch, policy, reference)
    leaf = policy.clone().requires_grad_()
    result = PPO()(batch, scores(batch, leaf))
    result.loss.backward()
    wanted = -batch.column("advantage") / batch.target.sum()
    torch.testing.assert_close(leaf.grad.float(), wanted)
    assert float(result.metrics["clip_fraction"]) == 0
    assert float(result.metrics["kl/old"]) == 0


def test_a_policy_that_moved_too_far_gets_no_gradient_there():
    batch, policy, reference = rollouts()
    batch = prepared(PPO(), batch, policy, reference)
    sign = batch.column("advantage").sign().double()
    leaf = (policy + 0.5 * sign).requires_grad_()  # every ratio beyond 1.2 or below 0.8
    result = PPO()(batch, scores(batch, leaf))
    result.loss.backward()
    assert (leaf.grad == 0).all()
    assert float(result.metrics["clip_fraction"]) == 1


def test_split_into_micro_batches_weighted_by_tokens_the_loss_is_the_same():
    batch, policy, reference = rollouts()
    batch = prepared(PPO(), batch, policy, reference)
    moved = policy + 0.1 * torch.randn(policy.shape, dtype=policy.dtype)
    whole = PPO()(batch, scores(batch, moved)).loss
    modules = [
        PPO()(part, scores(part, moved[rows])).loss * part.target.sum()
        for rows in (slice(0, 2), slice(2, 6))
        for part in [batch.select(rows)]
    ]
    torch.testing.assert_close(sum(modules) / batch.target.sum(), whole)


def critic_case():
    batch, policy, reference = rollouts()
    goal = PPO(critic=True, value_weight=0.5)
    modules = goal.modules(type("Model", (), {"config": type("C", (), {"hidden_size": 3})}))
    hidden = torch.randn(*batch.shape, 3)
    torch.nn.init.normal_(modules["critic"].weight)
    return goal, batch, policy, reference, modules, hidden


def test_the_critic_gives_the_values_and_learns_the_returns():
    goal, batch, policy, reference, modules, hidden = critic_case()
    own = scores(batch, policy, hidden=hidden)
    ready = goal.prepare(batch, own, scores(batch, reference), modules=modules)
    value = modules["critic"](hidden)[..., 0].detach().masked_fill(~batch.target, 0.0)
    torch.testing.assert_close(ready.column("value").float(), value)
    rewards = goal.reward(
        RolloutBatch(batch.with_columns(old_logprob=policy, reference_logprob=reference))
    )
    torch.testing.assert_close(
        ready.column("return"), gae(rewards, value.double(), batch.target, 1.0, 0.95)[1]
    )
    result = goal(ready, own, modules=modules)
    squared = 0.5 * (value - ready.column("return")).square()[batch.target].mean()
    plain = PPO()(ready, own).loss
    torch.testing.assert_close(result.loss - plain, 0.5 * squared)
    result.loss.backward()
    assert modules["critic"].weight.grad.abs().sum() > 0


def test_a_new_critic_says_0_and_without_one_there_are_no_parts():
    model = type("Model", (), {"config": type("C", (), {"hidden_size": 3})})
    assert (PPO(critic=True).modules(model)["critic"](torch.randn(2, 3)) == 0).all()
    assert not list(PPO().modules(model).parameters())


def test_needs_name_the_critics_only_with_a_critic():
    assert "policy.hidden" in PPO(critic=True).needs
    assert "policy.hidden" not in (*PPO().needs, *PPO().rollout_needs)


def test_a_missing_head_or_reference_is_an_error_that_speaks():
    goal, batch, policy, reference, _, hidden = critic_case()
    with pytest.raises(InputError, match="modules"):
        goal.prepare(batch, scores(batch, policy, hidden=hidden), scores(batch, reference))
    with pytest.raises(InputError, match="reference"):
        PPO().prepare(batch, scores(batch, policy), None)
    with pytest.raises(InputError, match="old_logprob"):
        PPO()(batch, scores(batch, policy))


def test_is_filed_as_the_baseline():
    assert objective["ppo"] is PPO
