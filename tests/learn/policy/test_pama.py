"""PAMA: the scalar min-norm problem against brute force, and the gradient it leaves."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls

from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError, ShapeError
from tokenry.core.scores import Scores
from tokenry.learn.objective import objective
from tokenry.learn.policy.advantages import gae, positional_baseline, reward_to_go, whiten
from tokenry.learn.policy.min_norm import mgda_weights, min_norm_scalars
from tokenry.learn.policy.pama import PAMA, noon, pama_loss
from tokenry.learn.policy.surrogate import clip_surrogate

numbers = st.floats(-3, 3).map(lambda x: round(x, 3))
MASK = torch.tensor([[False, True, True, True], [False, True, True, False]])


def random_advantages(n=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, *MASK.shape, generator=generator, dtype=torch.float64)


def gradient(advantages, log_ratio=None, scope="batch"):
    """d loss / d logprob, and the weights."""
    start = torch.zeros(MASK.shape, dtype=torch.float64) if log_ratio is None else log_ratio
    leaf = start.clone().requires_grad_()
    loss, weights = pama_loss(leaf.exp(), advantages, MASK, scope=scope)
    loss.backward()
    return leaf.grad, weights


@pytest.mark.parametrize(
    ("a", "weights", "value"),
    [
        ((0.3, -0.1), (0.25, 0.75), 0.0),
        ((0.3, 0.1), (0.0, 1.0), 0.1),
        ((-0.3, -0.1), (0.0, 1.0), -0.1),
        ((0.2, 0.2, 0.5), (0.5, 0.5, 0.0), 0.2),
        ((0.0, 0.5), (1.0, 0.0), 0.0),
        ((0.0, 0.0), (0.5, 0.5), 0.0),
        ((-1.0, 0.2, 1.0, 1.0), (0.5, 0.0, 0.25, 0.25), 0.0),
        ((0.7,), (1.0,), 0.7),
    ],
)
def test_worked_examples(a, weights, value):
    got, best = min_norm_scalars(torch.tensor(a))
    torch.testing.assert_close(got, torch.tensor(weights))
    assert float(best) == pytest.approx(value, abs=1e-7)


@given(st.lists(numbers, min_size=2, max_size=4))
def test_the_value_is_the_minimum_over_a_grid_of_the_simplex(a):
    weights, value = min_norm_scalars(torch.tensor(a, dtype=torch.float64))
    assert float(weights.sum()) == pytest.approx(1)
    assert (weights >= 0).all()
    assert float(weights @ torch.tensor(a, dtype=torch.float64)) == pytest.approx(float(value))
    steps = 12
    grid = [
        abs(sum(c * x for c, x in zip(shares, a, strict=True))) / steps
        for shares in itertools.product(range(steps + 1), repeat=len(a))
        if sum(shares) == steps
    ]
    assert abs(float(value)) <= min(grid) + 1e-9
    assert min(grid) - abs(float(value)) <= (max(a) - min(a)) / steps + 1e-9


@given(st.lists(numbers, min_size=2, max_size=6), st.floats(0.1, 50), st.randoms())
def test_weights_forget_scale_and_follow_the_order_of_objectives(a, scale, shuffler):
    a = torch.tensor(a, dtype=torch.float64)
    weights, _ = min_norm_scalars(a)
    order = list(range(len(a)))
    shuffler.shuffle(order)
    torch.testing.assert_close(min_norm_scalars(scale * a)[0], weights)
    torch.testing.assert_close(min_norm_scalars(a[order])[0], weights[order])


def test_every_token_is_its_own_problem_when_there_are_many():
    a = random_advantages()
    weights, value = min_norm_scalars(a)
    one, least = min_norm_scalars(a[:, 1, 2])
    torch.testing.assert_close(weights[:, 1, 2], one)
    torch.testing.assert_close(value[1, 2], least)


def test_noon_one_objective_is_the_clipped_surrogate_of_good_tokens():
    advantages = random_advantages(1)
    log_ratio = 0.3 * random_advantages(1, seed=4)[0]
    got, weights = gradient(advantages, log_ratio)
    leaf = log_ratio.clone().requires_grad_()
    surrogate = clip_surrogate(leaf.exp(), advantages[0].clamp_min(0))
    (-surrogate[MASK].mean()).backward()
    torch.testing.assert_close(got, leaf.grad)
    assert weights.tolist() == [1.0]


@pytest.mark.parametrize("scope", ["batch", "token"])
def test_identical_objectives_give_the_gradient_of_one(scope):
    one = random_advantages(1)
    got, _ = gradient(one.expand(3, -1, -1), scope=scope)
    torch.testing.assert_close(got, gradient(one, scope=scope)[0])


def test_tokens_that_were_bad_get_no_gradient():
    advantages = random_advantages(2)
    got, weights = gradient(advantages)
    alone = advantages[weights.argmax()]
    assert float(weights.max()) == 1
    assert (got[MASK & (alone < 0)] == 0).all()
    assert (got[MASK & (alone > 0)] != 0).all()
    assert (noon(advantages) >= 0).all()


def test_the_objective_that_is_behind_gets_the_weight():
    advantages = torch.stack([torch.full(MASK.shape, 3.0), torch.full(MASK.shape, 0.5)]).double()
    got, weights = gradient(advantages)
    assert weights.tolist() == [0.0, 1.0]
    torch.testing.assert_close(got[MASK], torch.full((5,), -0.5 / 5, dtype=torch.float64))


def test_per_token_a_token_counts_as_much_as_the_least_pleased_objective_says():
    advantages = random_advantages(3)
    got, weights = gradient(advantages, scope="token")
    least = advantages.clamp_min(0).amin(0)
    torch.testing.assert_close(got[MASK], -least[MASK] / MASK.sum())
    assert weights.shape == advantages.shape


def test_clipped_tokens_give_no_gradient_and_count_as_0():
    advantages = torch.stack([torch.full(MASK.shape, 1.0), torch.full(MASK.shape, 2.0)]).double()
    beyond = torch.tensor([[0.0, 0.3, 0.3, 0.3], [0.0, 0.3, 0.3, 0.0]]).double()
    got, _ = gradient(advantages, beyond)
    assert (got == 0).all()
    # clip hides objective 1 on 4 of 5 tokens: its mean 2/5 is then below objective 0's
    advantages[0, 1, 2], advantages[1, 1, 2] = 3.0, 2.0
    beyond[1, 2] = 0.0
    _, weights = gradient(advantages, beyond)
    assert weights.tolist() == [0.0, 1.0]


def objective_case(rewards=2):
    generator = torch.Generator().manual_seed(1)
    mask = torch.tensor([[False, True, True, True], [False, True, True, False]] * 3)
    batch = TokenBatch(torch.ones(6, 4).long(), mask | ~mask.any(0), mask)
    batch = TokenBatch(batch.ids, torch.cat([torch.ones(6, 1).bool(), mask[:, 1:]], 1), mask)
    batch = batch.with_columns(reward=torch.randn(6, rewards, generator=generator))
    policy, reference = -torch.rand(2, 6, 4, generator=generator)
    own, frozen = (Scores(batch.ids, mask, logprob=each) for each in (policy, reference))
    return batch, own, frozen


def test_prepare_gives_one_whitened_advantage_per_reward():
    batch, own, frozen = objective_case()
    ready = PAMA(kl=0.0).prepare(batch, own, frozen)
    assert ready.column("advantage").shape == (6, 4, 2)
    for number in range(2):
        rewards = torch.zeros(6, 4)
        rewards[torch.arange(6), batch.target.sum(-1)] = batch.column("reward")[:, number]
        values = positional_baseline(reward_to_go(rewards, batch.target), batch.target)
        wanted = whiten(gae(rewards, values, batch.target)[0], batch.target)
        torch.testing.assert_close(ready.column("advantage")[..., number], wanted)


@pytest.mark.parametrize("scope", ["batch", "token"])
def test_badly_scaled_rewards_change_nothing_when_normalised_and_something_when_not(scope):
    batch, own, frozen = objective_case()
    scaled = batch.with_columns(reward=batch.column("reward") * torch.tensor([0.1, 1.0]))
    for normalise in (True, False):
        objective = PAMA(kl=0.0, normalise=normalise, scope=scope)
        losses = [
            objective(objective.prepare(each, own, frozen), own).loss for each in (batch, scaled)
        ]
        assert torch.allclose(*losses) == normalise


def test_one_backward_pass_whatever_the_number_of_objectives():
    batch, own, frozen = objective_case(5)
    logprob = own.logprob.clone().requires_grad_()
    passes = []
    logprob.register_hook(lambda _: passes.append(1))
    ready = PAMA().prepare(batch, own, frozen)
    result = PAMA()(ready, Scores(batch.ids, batch.target, logprob=logprob))
    result.loss.backward()
    assert len(passes) == 1
    weights = [float(result.metrics[f"weight/{number}"]) for number in range(5)]
    assert sum(weights) == pytest.approx(1)


def test_every_value_head_learns_its_own_returns():
    batch, own, frozen = objective_case()
    objective = PAMA(critic=True)
    modules = objective.modules(type("Model", (), {"config": type("C", (), {"hidden_size": 3})}))
    hidden = torch.randn(6, 4, 3)
    own = Scores(batch.ids, batch.target, logprob=own.logprob, hidden=hidden)
    ready = objective.prepare(batch, own, frozen, modules=modules)
    objective(ready, own, modules=modules).loss.backward()
    slope = modules["critic"].bias.grad
    wanted = -ready.column("return")[batch.target].mean(0)  # d 0.5 (v - ret)^2 at v = 0
    torch.testing.assert_close(slope, (0.1 / 2 * wanted).float())
    with pytest.raises(ShapeError, match="objectives=3"):
        objective.prepare(
            batch.with_columns(reward=torch.zeros(6, 3)), own, frozen, modules=modules
        )


def nearest_norm(gradients):
    """The distance of 0 from the gradients' hull, by another way: the u >= 0 that minimise
    |G' u|^2 + (sum u - 1)^2 point to the nearest point, whatever their sum."""
    scale = max(float(gradients.abs().max()), 1e-300)
    rows = np.vstack([gradients.numpy().T / scale, np.ones(len(gradients))])
    weights, _ = nnls(rows, np.eye(len(rows))[-1])
    return float((torch.tensor(weights / weights.sum()) @ gradients).norm()), scale


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(1, 10),
    st.integers(1, 12),
    st.sampled_from(["far", "around", "flat", "twice"]),
    st.sampled_from([1e-6, 1.0, 1e6]),
)
def test_mgda_is_the_shortest_vector_in_the_hull(seed, n, d, kind, size):
    """Far from 0, with 0 inside, of low rank, with equal gradients; of any size."""
    generator = torch.Generator().manual_seed(seed)
    gradients = torch.randn(n, d, generator=generator, dtype=torch.float64)
    if kind == "far":
        gradients = gradients + 1
    elif kind == "flat":
        gradients = gradients[:, :1] * gradients[:1]
    elif kind == "twice":
        gradients = torch.cat([gradients, gradients])
    gradients = gradients * size
    weights = mgda_weights(gradients)
    assert (weights >= 0).all()
    assert float(weights.sum()) == pytest.approx(1.0)
    expected, scale = nearest_norm(gradients)
    assert float((weights @ gradients).norm()) <= expected + 1e-9 * scale


def test_mgda_of_eight_objectives_is_exact():
    """Three long gradients point one way and five short ones another: slow for Frank-Wolfe."""
    generator = torch.Generator().manual_seed(8)
    gradients = torch.randn(8, 6, generator=generator, dtype=torch.float64)
    gradients = gradients * torch.logspace(0, 3, 8, dtype=torch.float64)[:, None] + 0.3
    weights = mgda_weights(gradients)
    nearest = weights @ gradients
    # nothing in the hull makes a smaller product with it: the condition of optimality
    assert float((gradients @ nearest).min()) >= float(nearest @ nearest) * (1 - 1e-9) - 1e-12
    assert float(nearest.norm()) == pytest.approx(nearest_norm(gradients)[0], abs=1e-6)


def test_mgda_weights_of_one_and_of_half_precision_gradients():
    assert mgda_weights(torch.ones(1, 3)).tolist() == [1.0]
    assert mgda_weights(torch.zeros(2, 3)).sum() == 1
    half = mgda_weights(torch.tensor([[3.0, 0.0], [0.0, 1.0]], dtype=torch.bfloat16))
    assert half.dtype == torch.float32
    assert half.tolist() == pytest.approx([0.1, 0.9])


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="scope"):
        PAMA(scope="row")  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="per reward"):
        min_norm_scalars(torch.tensor(1.0))
    with pytest.raises(ShapeError, match=r"\[n, d\]"):
        mgda_weights(torch.zeros(3))
    with pytest.raises(InputError, match="finite"):
        mgda_weights(torch.full((2, 2), math.nan))


def test_is_filed_under_its_paper():
    assert {entry.key: entry.paper for entry in objective}["pama"] == 134
