"""What every rollout source must keep: rows that the policy can be scored on, and learn from."""

import copy

import pytest
import torch

import fake_vllm
from role_cases import cases
from tokenry.core.batch import TokenBatch
from tokenry.learn.compute import compute_loss, compute_scores
from tokenry.learn.policy.presets import GRPO
from tokenry.learn.policy.rollouts import RolloutSettings
from tokenry.learn.policy.sources.base import Prompts, RolloutSource, rollout_source
from tokenry.model.score import score

ENDS = (1, 3, 10, 11, 12)
SETTINGS = RolloutSettings(samples=4, max_new_tokens=7)
TEXTS = [[5, 6, 7], [8, 9], [4]]


@pytest.fixture(params=cases(rollout_source))
def source(request, monkeypatch):
    fake_vllm.install(monkeypatch)  # in the place of the engine, whether there is one or not
    return request.param()


def prompts():
    batch = TokenBatch.from_ids(TEXTS, padding_side="left")
    own = TokenBatch.from_ids(
        [[*text, 20, 21, 1] for text in TEXTS],
        [[False] * len(text) + [True] * 3 for text in TEXTS],
        group=[0, 1, 2],
    )
    return Prompts(batch.ids, batch.attention, ENDS, 0, own)


def drawn(source, model, seed=0):
    torch.manual_seed(seed)
    return source(model, prompts(), SETTINGS)


def test_it_follows_the_protocol(source):
    assert isinstance(source, RolloutSource)


def test_a_row_is_its_prompt_and_what_came_behind(source, tiny_model):
    batch = drawn(source, tiny_model)
    assert set(batch.group.tolist()) == {0, 1, 2}
    others = batch.columns.get("state", torch.full_like(batch.group, -1)) >= 0  # judges, and texts
    others |= batch.columns.get("sampled", torch.ones_like(batch.group)) == 0
    assert all(n <= SETTINGS.samples for n in torch.bincount(batch.group[~others]).tolist())
    for row in range(len(batch.ids)):
        prompt = TEXTS[int(batch.group[row])]
        real = batch.ids[row][batch.attention[row]].tolist()
        own = batch.target[row][batch.attention[row]].tolist()
        assert real[: len(prompt)] == prompt
        assert not any(own[: len(prompt)])
        assert any(own)
        assert len(real) - len(prompt) <= SETTINGS.max_new_tokens
        # a turn of the policy goes on until an end token, what others write, or the limit
        for token, mine, following in zip(real, own, [*own[1:], False], strict=True):
            assert not (mine and following and token in ENDS)
    for column in batch.columns.values():
        assert len(column) == len(batch.ids)


def test_the_same_seed_draws_the_same_and_the_model_stays_as_it_is(source, tiny_model):
    model = copy.deepcopy(tiny_model).train()
    before = copy.deepcopy(model.state_dict())
    one, two = (drawn(source, model, seed=3) for _ in range(2))
    assert torch.equal(one.ids, two.ids)
    assert torch.equal(one.target, two.target)
    assert model.training
    assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_policy_learns_from_its_rows(source, tiny_model):
    """Through an objective as the trainer takes it: scored, prepared, differentiated."""
    model, objective = copy.deepcopy(tiny_model), GRPO()
    batch = drawn(source, model)
    reward = (batch.ids * batch.target).sum(-1).float() / 64
    batch = batch.with_columns(reward=reward)
    scores = compute_scores(objective, batch, model, needs=objective.rollout_needs, grad=False)
    ready = objective.prepare(batch, scores.policy)
    result = compute_loss(objective, ready, model)
    result.loss.backward()
    assert torch.isfinite(result.loss)
    # what was scored when the rows were drawn is what the policy says now
    assert result.metrics["kl/old"].abs() < 1e-4
    lone = score(model, batch.select([0])).need("logprob")
    torch.testing.assert_close(lone, scores.policy.logprob[:1], rtol=1e-3, atol=1e-3)
