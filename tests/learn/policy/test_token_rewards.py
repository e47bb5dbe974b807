"""Token rewards: what stands where, and what they sum to."""

import pytest
import torch

from tokenry.core.errors import ShapeError
from tokenry.learn.policy.token_rewards import last_target, token_rewards

MASK = torch.tensor([[False, True, True, False], [True, True, True, True], [False] * 4])


def random_logprobs(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, *MASK.shape, generator=generator, dtype=torch.float64)


def test_the_sequence_reward_stands_on_the_last_target_token_only():
    got = token_rewards(MASK, torch.tensor([5.0, -3.0, 7.0]))
    assert got.tolist() == [[0, 0, 5, 0], [0, 0, 0, -3], [0, 0, 0, 0]]
    assert last_target(MASK).sum(-1).tolist() == [1, 1, 0]


def test_the_last_target_is_found_behind_a_hole():
    mask = torch.tensor([[True, False, False, True, False]])
    assert last_target(mask).tolist() == [[False, False, False, True, False]]


def test_rewards_sum_to_the_penalised_objective_of_the_row():
    old, reference = random_logprobs()
    reward = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    got = token_rewards(MASK, reward, old_logprob=old, reference_logprob=reference, kl=0.3)
    log_ratio = torch.where(MASK, old - reference, 0.0).sum(-1)
    torch.testing.assert_close(got.sum(-1)[:2], (reward - 0.3 * log_ratio)[:2])
    assert (got[~MASK] == 0).all()


def test_equal_policies_pay_no_penalty():
    old, _ = random_logprobs()
    got = token_rewards(MASK, old_logprob=old, reference_logprob=old, kl=5.0)
    assert (got == 0).all()


def test_clamp_bounds_the_sequence_reward_and_dense_rewards_are_added():
    dense = torch.full(MASK.shape, 0.5)
    got = token_rewards(MASK, torch.tensor([99.0, -99.0, 0.0]), dense=dense, reward_clamp=10.0)
    assert got[0].tolist() == [0, 0.5, 10.5, 0]
    assert float(got[1, 3]) == -9.5


def test_garbage_outside_the_target_does_not_leak():
    old, reference = (torch.where(MASK, each, torch.nan) for each in random_logprobs())
    got = token_rewards(MASK, old_logprob=old, reference_logprob=reference, kl=1.0, dense=old)
    assert torch.isfinite(got).all()


def test_no_gradient_flows_into_rewards():
    old = torch.zeros(MASK.shape, requires_grad=True)
    got = token_rewards(MASK, old_logprob=old, reference_logprob=torch.zeros(MASK.shape), kl=1.0)
    assert not got.requires_grad


def test_bad_input_is_refused():
    with pytest.raises(ShapeError, match="KL"):
        token_rewards(MASK, kl=1.0)
    with pytest.raises(ShapeError, match="one number per row"):
        token_rewards(MASK, torch.zeros(3, 2))
