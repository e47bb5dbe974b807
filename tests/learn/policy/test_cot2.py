"""CoT2: ratios of several draws, and GRPO's gradient at the policy that drew them."""

import copy

import pytest
import torch

from policy_variants import assert_gradient, prepared, random_tokens, rollouts
from tokenry.core.batch import TokenBatch
from tokenry.core.errors import ShapeError
from tokenry.learn.compute import compute_loss, compute_scores
from tokenry.learn.policy.cot2 import CoT2, mts_log_ratio
from tokenry.learn.policy.rollouts import RolloutSettings
from tokenry.learn.policy.sources.base import Prompts
from tokenry.learn.policy.sources.mixtures import Mixtures
from tokenry.model.score import score

T = torch.tensor


def test_the_two_ratios_of_a_thought():
    new, old = T([[0.0, 3.0, 0.0]]), T([[0.0, 0.0, 0.0]])
    tokens = T([[1, 1, 0]])
    total = torch.tensor([0.0, 3.0, 0.0]).logsumexp(0) - torch.zeros(3).logsumexp(0)
    geometric = mts_log_ratio(new, old, tokens, False)
    assert geometric.item() == pytest.approx(2.0 - total.item(), abs=1e-5)
    total = torch.tensor([0.0, 1.0, 0.0]).logsumexp(0) - torch.zeros(3).logsumexp(0)
    product = mts_log_ratio(new, old, tokens, True)
    assert product.item() == pytest.approx(2.0 - 3 * total.item(), abs=1e-5)
    for normalize in (False, True):
        assert mts_log_ratio(new, new, tokens, normalize) == 0
    one = mts_log_ratio(new, old, tokens[:, :1], True)
    assert one.item() == pytest.approx(mts_log_ratio(new, old, tokens[:, :1], False).item())
    with pytest.raises(ShapeError):
        mts_log_ratio(new, old[:, :2], tokens, True)


def test_advantages_are_of_the_population_and_the_clip_is_a_tenth():
    batch = rollouts()
    ready = prepared(CoT2(), batch)
    reward, group = batch.column("reward"), batch.group
    wanted = torch.zeros_like(reward)
    for number in (4, 9):
        own = group == number
        wanted[own] = (reward[own] - reward[own].mean()) / reward[own].std(correction=0)
    advantage = wanted[:, None].expand(batch.shape)

    def by_hand(x):
        kept = torch.minimum(x.exp() * advantage, x.exp().clamp(0.9, 1.1) * advantage)
        return -(kept * batch.target).sum(-1).div(batch.target.sum(-1)).mean()

    assert_gradient(by_hand, CoT2(), ready, random_tokens(batch, 3, 0.3), atol=1e-6)


def test_at_the_policy_that_drew_the_thoughts_it_is_the_weighted_score_function(tiny_llama):
    """Ratios are those of `mts_log_ratio`; on policy the gradient is that of A times the mean of
    log-probabilities, step by step."""
    model, goal = copy.deepcopy(tiny_llama), CoT2()
    asked = TokenBatch.from_ids([[5, 6, 7]])
    torch.manual_seed(0)
    batch = Mixtures(tokens=3, thoughts=2)(
        model, Prompts(asked.ids, asked.attention, (), 0), RolloutSettings(4, 4)
    ).with_columns(reward=T([1.0, 0.0, 0.0, 2.0]))
    scores = compute_scores(goal, batch, model, needs=goal.rollout_needs, grad=False)
    ready = goal.prepare(batch, scores.policy)
    compute_loss(goal, ready, model).loss.backward()
    ours = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    logprob = score(model, batch, grad=True).need("logprob")
    advantage = ready.column("advantage")
    (-(advantage * logprob * batch.target).sum(-1) / batch.target.sum(-1)).mean().backward()
    for name, weight in model.named_parameters():
        torch.testing.assert_close(ours[name], weight.grad, rtol=1e-3, atol=1e-5)
    # the first thought's log-ratio to another policy
    other = copy.deepcopy(tiny_llama)
    with torch.no_grad():
        other.lm_head.weight.mul_(0.9)
        logits = [m(asked.ids).logits[0, -1].expand(4, -1) for m in (other, model)]
        moved = score(other, batch).logprob - scores.policy.logprob
    drawn = batch.column("mixture")[:, 3]
    torch.testing.assert_close(
        moved[:, 3], mts_log_ratio(*logits, drawn, False), rtol=1e-3, atol=1e-4
    )
