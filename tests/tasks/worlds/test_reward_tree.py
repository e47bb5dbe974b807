"""The soft optimum of a token tree against enumeration of its leaves."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenry.core.errors import InputError, ShapeError
from tokenry.learn.preference.dpo import dpo_loss
from tokenry.tasks.worlds.reward_tree import RewardTree, soft_backup

BETAS = st.floats(0.05, 5)


@given(st.integers(0, 1000), BETAS)
def test_the_optimum_is_the_reference_tilted_by_the_reward_of_whole_texts(seed, beta):
    tree = RewardTree.random(seed)
    best = soft_backup(tree, beta)
    tilted = tree.along(tree.reference).sum(1) + tree.along(tree.reward).sum(1) / beta
    torch.testing.assert_close(
        tree.along(best.policy).sum(1), tilted.log_softmax(0), rtol=1e-10, atol=1e-10
    )
    torch.testing.assert_close(best.v[0][0], beta * tilted.logsumexp(0))


@given(st.integers(0, 1000), BETAS)
def test_advantages_telescope_to_the_reward_less_the_value_of_the_start(seed, beta):
    tree = RewardTree.random(seed)
    best = soft_backup(tree, beta)
    total = tree.along(best.advantage).sum(1)
    torch.testing.assert_close(total, tree.along(tree.reward).sum(1) - best.v[0])


def test_an_advantage_is_reward_plus_the_next_value_less_this_one():
    tree = RewardTree.random(2)
    best = soft_backup(tree, 0.7)
    for depth, (advantage, reward) in enumerate(zip(best.advantage, tree.reward, strict=True)):
        after = best.v[depth + 1].view(-1, 3)
        torch.testing.assert_close(advantage, reward + after - best.v[depth][:, None])
        torch.testing.assert_close(best.policy[depth].exp().sum(-1), torch.ones_like(best.v[depth]))


def test_with_a_reward_at_the_end_only_credit_is_the_change_of_value():
    tree = RewardTree.random(4, terminal=True)
    best = soft_backup(tree, 1.3)
    for depth in range(tree.depth - 1):
        change = best.v[depth + 1].view(-1, 3) - best.v[depth][:, None]
        torch.testing.assert_close(best.advantage[depth], change)
    reward = tree.along(tree.reward)[:, -1]
    torch.testing.assert_close(tree.along(best.advantage).sum(1), reward - best.v[0])


@settings(max_examples=20)
@given(st.integers(0, 1000))
def test_potential_shaping_leaves_the_policy_as_it_is(seed):
    tree = RewardTree.random(seed)
    generator = torch.Generator().manual_seed(seed)
    potential = [torch.randn(3**d, generator=generator).double() for d in range(tree.depth + 1)]
    potential[0].zero_()
    potential[-1].zero_()
    shaped = [
        reward + potential[depth + 1].view(-1, 3) - potential[depth][:, None]
        for depth, reward in enumerate(tree.reward)
    ]
    for one, other in zip(
        soft_backup(tree, 0.5).policy,
        soft_backup(RewardTree(tree.reference, shaped), 0.5).policy,
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_the_implicit_reward_of_reference_samples_is_minus_beta_kl():
    tree = RewardTree.random(6)
    beta = 0.4
    best = soft_backup(tree, beta)
    reference = tree.along(tree.reference).sum(1)
    policy = tree.along(best.policy).sum(1)
    mean_credit = (reference.exp() * tree.along(best.advantage).sum(1)).sum()
    kl = (reference.exp() * (reference - policy)).sum()
    torch.testing.assert_close(mean_credit, -beta * kl)
    assert float(mean_credit) < 0


def test_dpo_fitted_to_all_pairs_finds_the_exact_advantage_of_every_token():
    """Population preferences: every pair of leaves, weighted by its Bradley-Terry probability."""
    tree = RewardTree.random(0, vocabulary=2, depth=3)
    beta = 0.8
    total = tree.along(tree.reward).sum(1)
    reference = tree.along(tree.reference).sum(1)
    prefer = torch.sigmoid(total[:, None] - total[None])
    logits = [level.clone().requires_grad_() for level in tree.reference]
    optimizer = torch.optim.LBFGS(
        logits, max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe"
    )

    def loss():
        optimizer.zero_grad()
        ratio = tree.along([level.log_softmax(-1) for level in logits]).sum(1) - reference
        first, second = torch.broadcast_tensors(ratio[:, None], ratio[None])
        value = (prefer * dpo_loss(first, second, beta=beta)).mean()
        value.backward()
        return value

    optimizer.step(loss)
    for level, own, exact in zip(
        logits, tree.reference, soft_backup(tree, beta).advantage, strict=True
    ):
        credit = beta * (level.detach().log_softmax(-1) - own)
        torch.testing.assert_close(credit, exact, rtol=0, atol=1e-3)


def test_rewards_of_1e4_do_not_overflow():
    tree = RewardTree.random(0)
    best = soft_backup(RewardTree(tree.reference, [1e4 * level for level in tree.reward]), 0.1)
    assert all(bool(level.isfinite().all()) for level in (*best.q, *best.v, *best.policy))


def test_bad_input_is_named():
    tree = RewardTree.random(0)
    with pytest.raises(InputError, match="positive"):
        soft_backup(tree, 0.0)
    with pytest.raises(ShapeError, match="levels of shape"):
        RewardTree(tree.reference, tree.reward[:-1])
