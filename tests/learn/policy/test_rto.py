"""RTO's rewards: order of scale, clip and sums, its limits, and that they teach what DPO knows."""

import itertools

import pytest
import torch

from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError
from tokenry.core.scores import Scores
from tokenry.learn.objective import objective
from tokenry.learn.policy.advantages import reward_to_go
from tokenry.learn.policy.ppo import PPO
from tokenry.learn.policy.rollout_batch import RolloutBatch
from tokenry.learn.policy.rto import RTO, rto_token_rewards
from tokenry.learn.policy.token_rewards import token_rewards

MASK = torch.tensor([[False, True, True, True, False], [False, True, False, False, False]])


def random_logprobs(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return -3 * torch.rand(3, *MASK.shape, generator=generator, dtype=torch.float64)


REWARD = torch.tensor([2.0, -1.0], dtype=torch.float64)


def test_without_the_dense_part_the_rewards_are_those_of_ppo():
    dpo, reference, old = random_logprobs()
    got = rto_token_rewards(dpo, reference, old, MASK, REWARD, beta1=0.0, kl=0.3)
    wanted = token_rewards(MASK, REWARD, old_logprob=old, reference_logprob=reference, kl=0.3)
    torch.testing.assert_close(got, wanted)


def test_the_dense_part_alone_sums_to_the_sequence_log_ratio_of_dpo():
    dpo, reference, old = random_logprobs()
    got = rto_token_rewards(dpo, reference, old, MASK, None, beta1=0.2, dense_clip=0.0, kl=0.0)
    first = reward_to_go(got, MASK)[:, 1]
    torch.testing.assert_close(first, 0.2 * torch.where(MASK, dpo - reference, 0.0).sum(-1))


def test_dense_reward_and_penalty_cancel_when_the_policy_is_dpos():
    dpo, reference, _ = random_logprobs()
    got = rto_token_rewards(dpo, reference, dpo, MASK, REWARD, beta1=0.1, dense_clip=0.0, kl=0.1)
    torch.testing.assert_close(got, token_rewards(MASK, REWARD))


def test_scale_first_then_clip_then_penalty_and_final_reward():
    mask = torch.tensor([[True, True, True]])
    zero = torch.zeros(1, 3)
    dpo, old = torch.tensor([[4.0, -4.0, 0.5]]), torch.tensor([[1.0, 1.0, 1.0]])
    got = rto_token_rewards(dpo, zero, old, mask, torch.tensor([50.0]), beta1=0.05, kl=0.01)
    # 0.2 and -0.2 are clipped to +-0.05, 0.025 is not; then -0.01 each; the reward is kept at 10
    torch.testing.assert_close(got, torch.tensor([[0.04, -0.06, 10.015]]))


def test_rewards_on_padding_are_0_and_the_final_one_is_on_the_last_valid_token():
    dpo, reference, old = random_logprobs()
    zero = torch.zeros_like(old)
    got = rto_token_rewards(zero, zero, zero, MASK, REWARD)
    assert got.tolist() == [[0, 0, 0, 2, 0], [0, -1, 0, 0, 0]]
    spoiled = [torch.where(MASK, each, torch.nan) for each in (dpo, reference, old)]
    torch.testing.assert_close(
        rto_token_rewards(*spoiled, MASK, REWARD),
        rto_token_rewards(dpo, reference, old, MASK, REWARD),
    )


def test_the_objective_uses_them_and_is_otherwise_ppo():
    dpo, reference, old = random_logprobs()
    batch = TokenBatch(torch.ones(2, 5).long(), torch.ones(2, 5).bool(), MASK)
    batch = batch.with_columns(reward=REWARD)
    views = [Scores(batch.ids, MASK, logprob=each) for each in (dpo, reference, old)]
    goal = RTO(reward_weight=2.0)
    names = ("dpo_logprob", "reference_logprob", "old_logprob")
    columns = dict(zip(names, (dpo, reference, old), strict=True))
    got = goal.reward(RolloutBatch(batch.with_columns(**columns)))
    torch.testing.assert_close(got, rto_token_rewards(dpo, reference, old, MASK, 2 * REWARD))
    ready = RTO(beta1=0.0).prepare(batch, views[2], views[1], dpo=views[0])
    plain = PPO(kl=0.01).prepare(batch, views[2], views[1])
    torch.testing.assert_close(ready.column("advantage"), plain.column("advantage"))
    assert "dpo.logprob" in goal.rollout_needs
    with pytest.raises(InputError, match="dpo"):
        goal.prepare(batch, views[2], views[1])


def test_rewards_of_the_exact_soft_optimum_teach_exactly_that_optimum():
    """A tree of all texts of 3 of 3 tokens, random r(y): maximising E[sum of dense rewards] -
    beta KL over all policies, by gradient on their logits at every node, gives pi_dpo back."""
    beta, V, length = 0.7, 3, 3
    generator = torch.Generator().manual_seed(0)
    texts = list(itertools.product(range(V), repeat=length))
    reward = torch.randn(len(texts), generator=generator, dtype=torch.float64)
    reference = torch.randn(len(texts), generator=generator, dtype=torch.float64).log_softmax(0)
    optimum = (reference + reward / beta).log_softmax(0)  # of E[r] - beta KL, over whole texts
    tree = optimum.view([V] * length)

    def conditionals(joint):
        """log p(y_t | y_<t) along every text, [texts, length]."""
        sums = [joint.flatten().logsumexp(0).expand([V] * length)]
        for depth in range(1, length + 1):
            part = joint.reshape(V**depth, -1).logsumexp(1)
            sums.append(part.repeat_interleave(V ** (length - depth)).view([V] * length))
        return torch.stack([(b - a).flatten() for a, b in itertools.pairwise(sums)], 1)

    mask = torch.ones(len(texts), length, dtype=torch.bool)
    base = conditionals(reference.view([V] * length))
    dense = rto_token_rewards(
        conditionals(tree), base, base, mask, None, beta1=beta, dense_clip=0.0, kl=0.0
    )
    # the sum of dense rewards is r(y) up to one constant: only a difference of state values
    gap = dense.sum(-1) - reward
    torch.testing.assert_close(gap, gap[:1].expand_as(gap))
    logits = torch.zeros(len(texts), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, line_search_fn="strong_wolfe")

    def loss():
        logprob = logits.log_softmax(0)
        gain = (logprob.exp() * (dense.sum(-1) - beta * (logprob - reference))).sum()
        optimizer.zero_grad()
        (-gain).backward()
        return -gain

    optimizer.step(loss)
    torch.testing.assert_close(
        logits.log_softmax(0).exp().detach(), optimum.exp(), atol=1e-4, rtol=0
    )


def test_is_filed_under_its_paper():
    assert {entry.key: entry.paper for entry in objective}["rto"] == 83
