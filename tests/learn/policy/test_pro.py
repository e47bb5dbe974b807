"""PRO: rewards mixed under the prompt's weights, and PPO from there on."""

import pytest
import torch

from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError, ShapeError
from tokenry.core.scores import Scores
from tokenry.learn.objective import objective
from tokenry.learn.policy.orchestrator import PreferenceOrchestrator
from tokenry.learn.policy.ppo import PPO
from tokenry.learn.policy.pro import PRO, weighted_reward


def case(rewards=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = [[0, 1, 2, 3], [0, 1, 2], [0, 1, 2, 3], [0, 4, 4]]
    targets = [[False, False] + [True] * (len(row) - 2) for row in rows]
    batch = TokenBatch.from_ids(rows, targets)
    values = torch.randn(4, rewards, generator=generator)
    batch = batch.with_columns(reward=values)
    policy, frozen = -torch.rand(2, *batch.shape, generator=generator)
    hidden = torch.randn(*batch.shape, 5, generator=generator)
    own = Scores(batch.ids, batch.target, logprob=policy)
    return batch, own, Scores(batch.ids, batch.target, logprob=frozen, hidden=hidden)


def orchestrator(rewards=3):
    torch.manual_seed(0)
    made = PreferenceOrchestrator(5, rewards)
    made.reward_mean.copy_(torch.arange(rewards).float())
    made.reward_std.copy_(1 + torch.arange(rewards).float())
    return made


MODEL = type("Model", (), {"config": type("C", (), {"hidden_size": 5})})


def test_the_reward_is_the_weighted_sum_of_z_scores():
    batch, own, frozen = case()
    made = orchestrator()
    objective = PRO(orchestrator=made)
    ready = objective.prepare(batch, own, frozen, modules=objective.modules(MODEL))
    weights = made(frozen.hidden[:, 2])  # every completion begins at position 2
    scores = (batch.column("reward") - torch.tensor([0.0, 1, 2])) / torch.tensor([1.0, 2, 3])
    torch.testing.assert_close(ready.column("reward"), (weights * scores).sum(-1))
    torch.testing.assert_close(ready.column("weights"), weights)
    plain = PPO().prepare(ready, own, frozen)
    torch.testing.assert_close(ready.column("advantage"), plain.column("advantage"))


def test_one_reward_is_ordinary_rlhf():
    batch, own, frozen = case(rewards=1)
    single = batch.with_columns(reward=batch.column("reward")[:, 0])
    wanted = PPO().prepare(single, own, frozen).column("advantage")
    made = orchestrator(1)
    objective = PRO(orchestrator=made)
    for each in (batch, single):
        got = objective.prepare(each, own, frozen, modules=objective.modules(MODEL))
        torch.testing.assert_close(got.column("advantage"), wanted)
        torch.testing.assert_close(PRO().prepare(each, own, frozen).column("advantage"), wanted)


def test_user_weights_are_mixed_in():
    batch, own, frozen = case()
    made = orchestrator()
    user = (0.5, 0.3, 0.2)
    weights = {}
    for share in (0.0, 0.25, 1.0):
        objective = PRO(orchestrator=made, user_weights=user, user_share=share)
        weights[share] = objective.prepare(
            batch, own, frozen, modules=objective.modules(MODEL)
        ).column("weights")
    torch.testing.assert_close(weights[1.0], torch.tensor([user] * 4))
    torch.testing.assert_close(weights[0.25], 0.75 * weights[0.0] + 0.25 * weights[1.0])


def test_without_an_orchestrator_all_prompts_have_the_same_weights():
    batch, own, frozen = case()
    got = PRO().prepare(batch, own, frozen)
    torch.testing.assert_close(got.column("reward"), batch.column("reward").mean(-1))
    fixed = PRO(user_weights=(1.0, 0.0, 0.0)).prepare(batch, own, frozen)
    torch.testing.assert_close(fixed.column("reward"), batch.column("reward")[:, 0])


def test_the_orchestrator_is_frozen_and_may_come_from_a_file(tmp_path):
    made = orchestrator()
    made.save(tmp_path / "one.safetensors")
    objective = PRO(orchestrator=str(tmp_path / "one.safetensors"), critic=True)
    modules = objective.modules(MODEL)
    trained = {name for name, weight in modules.named_parameters() if weight.requires_grad}
    assert trained == {"critic.weight", "critic.bias"}
    assert "reference.hidden" in objective.rollout_needs
    assert "reference.hidden" not in PRO().rollout_needs
    states = torch.randn(2, 5)
    torch.testing.assert_close(modules["orchestrator"](states), made(states))


def test_weights_per_prompt_reach_what_no_fixed_weights_do():
    """Two kinds of prompts that want reward 1 or reward 2; tabular policies over 3 answers with
    rewards (1, 0), (0, 1) and (0.6, 0.6), each the closed-form optimum of E[w r] - beta KL."""
    beta = 0.1
    rewards = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.6]], dtype=torch.float64)

    def utility(weights, truth):
        """The true penalised utility of the policy that is optimal for `weights`."""
        mixed = weighted_reward(weights.expand(3, 2), rewards)
        policy = (mixed / beta).softmax(0)
        kl = (policy * (policy * 3).log()).sum()
        return float(policy @ (rewards @ truth) - beta * kl)

    truths = torch.eye(2, dtype=torch.float64)
    best = [utility(truth, truth) for truth in truths]
    for share in torch.linspace(0, 1, 21, dtype=torch.float64):
        fixed = torch.stack([share, 1 - share])
        got = [utility(fixed, truth) for truth in truths]
        assert all(g <= b + 1e-12 for g, b in zip(got, best, strict=True))
        assert min(g - b for g, b in zip(got, best, strict=True)) < -0.05


def test_bad_input_is_refused():
    batch, own, frozen = case()
    with pytest.raises(InputError, match="user_share"):
        PRO(user_share=2.0)
    with pytest.raises(InputError, match="sum to 1"):
        PRO(user_weights=(0.5, 0.4))
    with pytest.raises(InputError, match="modules"):
        PRO(orchestrator=orchestrator()).prepare(batch, own, frozen)
    with pytest.raises(ShapeError, match="3 rewards"):
        PRO(user_weights=(0.5, 0.5)).prepare(batch, own, frozen)
    with pytest.raises(ShapeError, match="both"):
        weighted_reward(torch.ones(2, 3), torch.ones(2, 2))


def test_is_filed_under_its_paper():
    assert {entry.key: entry.paper for entry in objective}["pro"] == 141
