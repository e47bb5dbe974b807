"""Posterior control: closed forms, optimality conditions, and least KL against other solvers."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from tokenry.core.errors import ConstraintError, InputError, ShapeError, VocabularyError
from tokenry.decode.constraints.base import Anything
from tokenry.decode.samplers.smc import smc
from tokenry.decode.steering.posterior import (
    PosteriorControl,
    event_features,
    fitted_tilt,
    posterior,
)
from tokenry.tasks.worlds.toy_lm import ToyLM, ToyState

IDS = torch.zeros(2, 3, dtype=torch.long)


def random_logprob(seed, rows=2, size=4):
    generator = torch.Generator().manual_seed(seed)
    return (1.5 * torch.randn(rows, size, generator=generator, dtype=torch.float64)).log_softmax(-1)


def expectation(logprob, features):
    return (logprob.exp()[:, None] * torch.as_tensor(features, dtype=torch.float64)).sum(-1)


def kl(q, p):
    return torch.where(q > 0, q * (q.log() - p.log()), 0.0).sum(-1)


def test_a_given_multiplier_is_the_tilt_and_zero_the_identity():
    p = torch.tensor([[0.5, 0.25, 0.25]]).log()
    phi = [1.0, 0.0, -1.0]
    steered = PosteriorControl(phi, multiplier=math.log(2))(IDS, p)
    expected = torch.tensor([[0.25, 0.25, 0.5]])
    torch.testing.assert_close(steered.softmax(-1), expected)
    assert torch.equal(PosteriorControl(phi, multiplier=0.0)(IDS, p), p)


def test_an_indicator_is_fitted_in_closed_form():
    """E_q[1{v in A}] = ε: A keeps ε of the mass, q(A) = a e^-u / (a e^-u + 1 - a)."""
    p = torch.tensor([[0.6, 0.2, 0.1, 0.1]], dtype=torch.float64).log()
    phi = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    tilt = fitted_tilt(p, phi[None], torch.tensor([0.3], dtype=torch.float64))
    u = math.log(0.8 / 0.2 * 0.7 / 0.3)
    torch.testing.assert_close(tilt, u * phi[None])
    q = PosteriorControl(phi, epsilon=0.3)(IDS, p).softmax(-1)
    expected = torch.tensor([[0.225, 0.075, 0.35, 0.35]], dtype=torch.float64)
    torch.testing.assert_close(q, expected)


def test_a_satisfied_constraint_leaves_the_logits_as_they_are():
    scores = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(PosteriorControl([0.0, 1.0, 2.0, 3.0], epsilon=3.0)(IDS, scores), scores)


def test_no_mass_allowed_is_a_filter():
    scores = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    steered = PosteriorControl([0.0, 1.0, 1.0, 0.0], epsilon=0.0)(IDS, scores)
    assert steered[:, [1, 2]].isneginf().all()
    assert torch.equal(steered[:, [0, 3]], scores[:, [0, 3]])


@given(st.integers(0, 10_000), st.integers(1, 3), st.floats(0.05, 0.9))
def test_the_optimality_conditions_hold(seed, constraints, strictness):
    p = random_logprob(seed, rows=3, size=6)
    generator = torch.Generator().manual_seed(seed + 1)
    phi = torch.randn(constraints, 6, generator=generator, dtype=torch.float64)
    # feasible for sure: a random inner distribution satisfies it
    inner = random_logprob(seed + 2, rows=1, size=6)
    epsilon = expectation(inner, phi)[0] + 1e-3 * strictness
    tilt = fitted_tilt(p, phi, epsilon)
    q = (p - tilt).log_softmax(-1)
    excess = expectation(q, phi) - epsilon
    assert float(excess.max()) < 1e-6
    u = torch.linalg.lstsq(phi.T, tilt.T).solution.T  # tilt = u·φ
    torch.testing.assert_close(u @ phi, tilt, atol=1e-6, rtol=1e-6)
    assert float(u.min()) > -1e-6
    assert float((u * excess).abs().max()) < 1e-4  # complementary slackness
    # Pythagoras: everything feasible is at least as far from p as q is
    torch.testing.assert_close(posterior(p, phi, u), q, atol=1e-5, rtol=1e-5)
    feasible = inner.exp().expand_as(q)
    assert bool(
        (kl(feasible, p.exp()) >= kl(feasible, q.exp()) + kl(q.exp(), p.exp()) - 1e-5).all()
    )


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("constraints", [1, 2])
def test_least_kl_against_a_general_convex_solver(seed, constraints):
    p = random_logprob(seed, rows=1).exp()[0].numpy()
    phi = np.random.default_rng(seed).normal(size=(constraints, 4))
    inner = np.random.default_rng(seed + 9).dirichlet(np.ones(4))
    epsilon = phi @ inner + 0.01
    found = minimize(
        lambda q: float(np.sum(q * np.log(np.maximum(q, 1e-300) / p))),
        inner,
        jac=lambda q: np.log(np.maximum(q, 1e-300) / p) + 1,
        bounds=[(1e-12, 1)] * 4,
        constraints=[
            {"type": "eq", "fun": lambda q: q.sum() - 1},
            {"type": "ineq", "fun": lambda q: epsilon - phi @ q},
        ],
        options={"maxiter": 500, "ftol": 1e-14},
    )
    logits = torch.tensor(p)[None].log()
    q = PosteriorControl(phi.tolist(), epsilon=epsilon.tolist())(IDS, logits).softmax(-1)[0].numpy()
    np.testing.assert_allclose(q, found.x, atol=2e-4)
    assert np.sum(q * np.log(q / p)) <= found.fun + 1e-9


def test_the_constraint_holds_at_the_temperature_of_sampling():
    scores = torch.randn(2, 4, generator=torch.Generator().manual_seed(1))
    phi = torch.tensor([1.0, 0.0, -1.0, 0.5], dtype=torch.float64)
    control = PosteriorControl(phi, epsilon=-0.5, sampling_temperature=0.25)
    drawn = (control(IDS, scores) / 0.25).double().log_softmax(-1)
    torch.testing.assert_close(
        expectation(drawn, phi[None])[:, 0].clamp_min(-0.5),
        torch.full((2,), -0.5, dtype=torch.float64),
        atol=1e-5,
        rtol=0,
    )


def test_only_possible_tokens_count():
    scores = torch.tensor([[0.0, -torch.inf, 0.0, -torch.inf]])
    phi = [1.0, -5.0, 0.0, -5.0]
    q = PosteriorControl(phi, epsilon=0.25)(IDS, scores).softmax(-1)
    torch.testing.assert_close(q, torch.tensor([[0.25, 0.0, 0.75, 0.0]]))
    with pytest.raises(ConstraintError, match="least is 0"):
        PosteriorControl(phi, epsilon=-1.0)(IDS, scores)
    closest = PosteriorControl(phi, epsilon=-1.0, when_infeasible="closest")(IDS, scores)
    assert closest.softmax(-1).tolist() == [[0.0, 0.0, 1.0, 0.0]]


def test_constraints_that_contradict_each_other_are_an_error():
    scores = torch.zeros(1, 3)
    phi = [[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]]
    with pytest.raises(ConstraintError, match="together"):
        PosteriorControl(phi, epsilon=[0.4, 0.4])(IDS[:1], scores)
    with pytest.raises(ConstraintError):  # a filter that leaves nothing to the other one
        PosteriorControl(phi, epsilon=[0.0, 0.5])(IDS[:1], scores)


def test_events_want_more_mass_on_the_answer():
    scores = torch.tensor([[2.0, 1.0, 0.0, 0.0, 3.0]])
    phi = event_features(5, answer=[1, 2], nonanswer=[0])
    assert phi.tolist() == [1.0, -1.0, -1.0, 0.0, 0.0]
    q = PosteriorControl(phi, epsilon=0.0)(IDS, scores).double().softmax(-1)[0]
    assert float(q[1] + q[2]) == pytest.approx(float(q[0]))
    with pytest.raises(InputError, match=r"\[2\]"):
        event_features(5, [1, 2], [2])
    with pytest.raises(VocabularyError, match="7"):
        event_features(5, [7])


def test_the_potential_samples_the_posterior_of_whole_texts():
    model = ToyLM(vocab_size=3, order=1, eos=0, seed=1)
    control = PosteriorControl([0.0, 1.0, -0.5], multiplier=0.7)
    draws = 4000
    samples = smc(
        ToyState.start(model, torch.zeros(1, 0, dtype=torch.long)),
        Anything(3, [0]),
        particles=draws,
        max_new_tokens=4,
        critic=control.potential,
        ess_threshold=0.0,
    )
    found: dict[tuple[int, ...], float] = {}
    for ids, log_weight in zip(samples.ids, samples.log_weights.tolist(), strict=True):
        found[tuple(ids)] = found.get(tuple(ids), 0.0) + math.exp(log_weight) / draws
    # Hoeffding: weights are at most e^(0.35 · 3), 15 texts, a false alarm in 10^7 runs
    tolerance = math.exp(1.05) * math.sqrt(math.log(2 * 15 * 1e7) / (2 * draws))
    for text, value in model.texts(4).items():
        joint = math.exp(value - 0.7 * (text.count(1) - 0.5 * text.count(2)))
        assert abs(found.get(text, 0.0) - joint) < tolerance
        exact = control.potential(list(text), True)
        assert exact == pytest.approx(-0.7 * (text.count(1) - 0.5 * text.count(2)))
    with pytest.raises(InputError, match="potential"):
        PosteriorControl([0.0, 1.0, -0.5], epsilon=0.7).potential([1])


def test_wrong_arguments_are_errors():
    with pytest.raises(InputError, match="either"):
        PosteriorControl([0.0, 1.0])
    with pytest.raises(InputError, match="when_infeasible"):
        PosteriorControl([0.0, 1.0], epsilon=0.0, when_infeasible="maybe")
    with pytest.raises(ShapeError, match="one for each of the 1"):
        PosteriorControl([0.0, 1.0], epsilon=[0.0, 1.0, 2.0])
    with pytest.raises(ShapeError, match="finite"):
        PosteriorControl([0.0, math.inf], epsilon=0.0)
    with pytest.raises(VocabularyError, match="5 tokens"):
        PosteriorControl([0.0] * 5, epsilon=1.0)(IDS, torch.zeros(2, 4))


def test_logits_beyond_the_features_count_as_zero():
    scores = torch.randn(2, 7, generator=torch.Generator().manual_seed(0))
    short = PosteriorControl([1.0, 0.5, -1.0], epsilon=-0.2)
    full = PosteriorControl([1.0, 0.5, -1.0, 0, 0, 0, 0], epsilon=-0.2)
    torch.testing.assert_close(short(IDS, scores), full(IDS, scores))
