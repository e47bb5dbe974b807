"""The orchestrator: target weights, its loss, and that it reads prompts alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError, ShapeError
from tokenry.learn.policy.orchestrator import (
    PreferenceOrchestrator,
    RewardStats,
    fit_orchestrator,
    orchestrator_loss,
    prompt_states,
    reward_profile_targets,
    weights_prefix,
)
from tokenry.model.score import score

PLAIN = RewardStats(torch.zeros(3), torch.ones(3))  # scores that are z-scores already


def test_worked_example_and_both_limits_of_the_temperature():
    scores = torch.tensor([[1.0, 0.2, -0.5]])
    got, _ = reward_profile_targets(scores, stats=PLAIN)
    torch.testing.assert_close(
        got, torch.tensor([[0.597922, 0.268664, 0.133414]]), atol=1e-6, rtol=0
    )
    flat, _ = reward_profile_targets(scores, tau=1e6, stats=PLAIN)
    torch.testing.assert_close(flat, torch.full((1, 3), 1 / 3), atol=1e-5, rtol=0)
    sharp, _ = reward_profile_targets(scores, tau=1e-4, stats=PLAIN)
    assert sharp.tolist() == [[1.0, 0.0, 0.0]]


@given(st.integers(0, 1000), st.floats(-20, 20), st.floats(0.01, 100), st.floats(-5, 5))
def test_a_constant_on_all_scores_of_a_response_or_a_rewards_own_scale_do_not_matter(
    seed, constant, scale, shift
):
    scores = torch.randn(8, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    targets, stats = reward_profile_targets(scores)
    raised = scores + constant * stats.std  # the same constant on every *normalised* score
    torch.testing.assert_close(reward_profile_targets(raised, stats=stats)[0], targets)
    other = scores.clone()
    other[:, 1] = scale * other[:, 1] + shift
    torch.testing.assert_close(reward_profile_targets(other)[0], targets)


def test_a_reward_that_never_varies_says_nothing():
    scores = torch.tensor([[1.0, 7.0], [-1.0, 7.0]])
    targets, stats = reward_profile_targets(scores)
    torch.testing.assert_close(targets[0], torch.tensor([1.0, 0.0]).softmax(0))
    assert torch.isfinite(stats.normalise(scores)).all()


@given(st.integers(0, 1000))
def test_the_loss_is_0_at_the_targets_only_and_its_gradient_is_the_difference(seed):
    generator = torch.Generator().manual_seed(seed)
    logits, other = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    targets = other.softmax(-1)
    assert float(orchestrator_loss(other + 3.0, targets)) == pytest.approx(0, abs=1e-12)
    leaf = logits.clone().requires_grad_()
    loss = orchestrator_loss(leaf, targets)
    loss.backward()
    assert float(loss.detach()) > 0
    torch.testing.assert_close(leaf.grad * 4, logits.softmax(-1) - targets)
    wanted = (targets * (targets.log() - logits.log_softmax(-1))).sum(-1).mean()
    torch.testing.assert_close(loss.detach(), wanted)


def test_one_hot_targets_and_enormous_logits_are_finite():
    logits = torch.tensor([[1e4, -1e4]], requires_grad=True)
    loss = orchestrator_loss(logits, torch.tensor([[0.0, 1.0]]))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(2e4)
    assert torch.isfinite(logits.grad).all()


def test_it_learns_which_prompt_is_about_what_and_survives_saving(tmp_path):
    generator = torch.Generator().manual_seed(0)
    kind = torch.randint(3, (200,), generator=generator)
    states = torch.nn.functional.one_hot(kind, 5).float() * 100 + torch.randn(
        200, 5, generator=generator
    )
    scores = torch.nn.functional.one_hot(kind, 3) * torch.tensor([1.0, 10.0, 100.0])
    made = fit_orchestrator(states, scores, tau=0.5, seed=1)
    targets, _ = reward_profile_targets(scores.float(), 0.5)
    weights = made(states)
    assert float(orchestrator_loss(made.logits(states), targets)) < 0.02
    torch.testing.assert_close(weights.sum(-1), torch.ones(200))
    assert (weights > 0).all()
    assert torch.equal(weights.argmax(-1), kind)
    made.save(tmp_path / "orchestrator.safetensors")
    again = PreferenceOrchestrator.load(tmp_path / "orchestrator.safetensors")
    torch.testing.assert_close(again(states), weights)
    torch.testing.assert_close(again.stats.mean, scores.float().mean(0))
    assert not any(weight.requires_grad for weight in again.parameters())


def test_an_entropy_bonus_spreads_the_weights():
    states = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    scores = torch.stack([states[:, 0], -states[:, 0]], -1)
    entropy = [
        torch.special.entr(
            fit_orchestrator(states, scores, tau=0.3, entropy_bonus=bonus, steps=100)(states)
        )
        .sum(-1)
        .mean()
        for bonus in (0.0, 1.0)
    ]
    assert entropy[1] > entropy[0] + 0.05


def test_identical_prompts_get_identical_weights_whatever_the_response(tiny_model):
    prompt = [5, 9, 3]
    rows = [[*prompt, 7, 8], [*prompt, 20], [4, 9, 3, 7, 8]]
    targets = [[False] * 3 + [True] * (len(row) - 3) for row in rows]
    made = PreferenceOrchestrator(tiny_model.config.hidden_size, 3)
    for side in ("left", "right"):
        batch = TokenBatch.from_ids(rows, targets, padding_side=side)
        states = prompt_states(batch, score(tiny_model, batch, ("hidden",)))
        weights = made(states)
        torch.testing.assert_close(weights[0], weights[1], atol=1e-5, rtol=0)
        assert (weights[0] - weights[2]).abs().max() > 1e-4


def test_weights_as_text():
    assert weights_prefix(torch.tensor([0.25, 0.75]), ["short", "kind"]) == (
        "<short: 0.25><kind: 0.75> "
    )


def test_bad_input_is_refused(tmp_path):
    with pytest.raises(InputError, match="tau"):
        reward_profile_targets(torch.ones(2, 2), tau=0)
    with pytest.raises(ShapeError, match="per reward"):
        reward_profile_targets(torch.ones(2))
    with pytest.raises(ShapeError, match="3 prompts"):
        fit_orchestrator(torch.ones(3, 2), torch.ones(2, 2))
    with pytest.raises(ShapeError, match="names"):
        weights_prefix([1.0], ["a", "b"])
    with pytest.raises(InputError, match="no orchestrator"):
        PreferenceOrchestrator.load(tmp_path / "none")
    batch = TokenBatch.from_ids([[1, 2]], [[False, False]])
    with pytest.raises(InputError, match="no response"):
        prompt_states(batch, None)  # type: ignore[arg-type]
