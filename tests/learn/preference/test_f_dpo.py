"""f-DPO against its paper: its table of rewards, DPO as a special case, the optimum it aims at."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import logsigmoid

from tokenry.core.batch import TokenBatch
from tokenry.core.divergences import (
    FORWARD_KL,
    JENSEN_SHANNON,
    JENSEN_SHANNON_SUM,
    REVERSE_CHI_SQUARED,
    REVERSE_KL,
    SQUARED_HELLINGER,
    TOTAL_VARIATION,
    alpha,
    skew_kl,
)
from tokenry.core.errors import InputError, ShapeError, UnknownNameError
from tokenry.core.scores import Scores
from tokenry.learn.objective import objective
from tokenry.learn.preference.dpo import DPO
from tokenry.learn.preference.f_dpo import FDPO, f_dpo_loss, optimal_policy
from tokenry.learn.preference.weighted import PreferenceObjective

KINDS = [REVERSE_KL, FORWARD_KL, JENSEN_SHANNON_SUM, alpha(0.3), alpha(0.5), alpha(0.7)]
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


def case(seed=0, pairs=3, length=5, scale=1.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(9, (2 * pairs, length + 1), generator=generator).tolist()
    targets = [[False] + [True] * (length - row % 2) + [False] * (row % 2) for row in range(6)]
    batch = TokenBatch.from_ids(ids, targets[: 2 * pairs], group=[*range(pairs)] * 2)
    logprobs = [
        -scale * torch.rand(batch.shape, generator=generator, dtype=dtype) for _ in range(2)
    ]
    return batch, *(torch.where(batch.target, value, torch.nan) for value in logprobs)


def loss_of(objective, batch, policy, reference):
    own, frozen = (Scores(batch.ids, batch.target, logprob=value) for value in (policy, reference))
    return objective(batch, own, frozen)


def value_and_gradient(objective, batch, policy, reference):
    leaf = policy.clone().requires_grad_()
    loss = loss_of(objective, batch, leaf, reference).loss
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


def test_reverse_kl_is_dpo_in_value_and_gradient():
    found = [
        value_and_gradient(objective, *case()) for objective in (FDPO(0.3, "reverse_kl"), DPO(0.3))
    ]
    torch.testing.assert_close(*found)


def test_small_alpha_tends_to_dpo_and_alpha_near_one_to_the_forward_kl():
    for limit, near in ((0.0, 1e-4), (1.0, 1 - 1e-4)):
        found = [value_and_gradient(FDPO(0.3, alpha(a)), *case()) for a in (limit, near)]
        torch.testing.assert_close(*found, rtol=2e-3, atol=1e-5)


def test_margins_of_the_papers_table():
    """log t = ln 2 for the chosen and -ln 2 for the rejected completion."""
    log_ratio = torch.tensor([math.log(2)], dtype=torch.float64)
    expected = {
        "reverse_kl": 1.386294,
        "forward_kl": 1.5,
        "jensen_shannon_sum": 0.693147,
        "alpha:0.5": 1.414214,
    }
    for kind in KINDS:
        if kind.name in expected:
            loss = f_dpo_loss(log_ratio, -log_ratio, beta=1.0, divergence=kind)
            assert float(-torch.log(torch.expm1(loss))) == pytest.approx(
                expected[kind.name], abs=1e-6
            )


@settings(max_examples=30)
@given(st.floats(-30, 30), st.floats(-30, 30), st.sampled_from(KINDS))
def test_agrees_with_the_forms_that_other_libraries_use(chosen, rejected, kind):
    """f'(t) of t = pi / pi_ref, alpha counted from the other end: t^(c-1) with c = 1 - alpha."""
    sides = [torch.tensor([side], dtype=torch.float64) for side in (chosen, rejected)]
    forms = {
        "reverse_kl": lambda x: x,
        "forward_kl": lambda x: 1 - torch.exp(-x),
        "jensen_shannon_sum": lambda x: math.log(2) + logsigmoid(x),
    }

    def power(x):
        c = 1 - float(kind.name.partition(":")[2])
        return (torch.exp((c - 1) * x) - 1) / (c - 1)

    one, two = (forms.get(kind.name, power)(side) for side in sides)
    torch.testing.assert_close(
        f_dpo_loss(*sides, beta=0.1, divergence=kind), -logsigmoid(0.1 * (one - two))
    )


@kinds
def test_equal_log_ratios_give_ln_2_and_pull_the_two_sides_apart(kind):
    sides = [torch.full((3,), 0.7, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    loss = f_dpo_loss(*sides, beta=0.1, divergence=kind)
    torch.testing.assert_close(loss.detach(), torch.full((3,), math.log(2), dtype=torch.float64))
    chosen, rejected = torch.autograd.grad(loss.sum(), sides)
    assert (chosen < 0).all()
    assert (rejected > 0).all()


def test_slope_at_the_reference_is_one_half_for_jensen_shannon_and_one_for_the_others():
    for kind in KINDS:
        zero = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(kind.derivative(zero).sum(), zero)
        assert float(slope) == pytest.approx(0.5 if kind == JENSEN_SHANNON_SUM else 1.0)


def test_the_mean_jensen_shannon_is_the_sum_at_half_the_beta():
    mean = value_and_gradient(FDPO(0.2, JENSEN_SHANNON), *case())
    torch.testing.assert_close(mean, value_and_gradient(FDPO(0.1), *case()))


def test_jensen_shannon_rewards_are_bounded_by_ln_2():
    far = torch.tensor([-500.0, 0.0, 20.0, 500.0, 1e4])
    rewards = JENSEN_SHANNON_SUM.derivative(far)
    assert (rewards <= math.log(2) + 1e-6).all()
    assert rewards[0] == pytest.approx(-500 + math.log(2))


@kinds
@pytest.mark.parametrize("distance", [500.0, 1e4])
def test_completions_hopelessly_far_from_the_reference_stay_finite(kind, distance):
    for sign in (1, -1):
        sides = [torch.tensor([s * sign * distance], requires_grad=True) for s in (1, -1)]
        loss = f_dpo_loss(*sides, beta=1.0, divergence=kind)
        gradients = torch.autograd.grad(loss.sum(), sides)
        assert loss.isfinite().all()
        assert all(gradient.isfinite().all() for gradient in gradients)


@kinds
def test_minimiser_of_the_bradley_terry_loss_is_the_regularised_optimum(kind):
    """Five completions of one prompt, every pair with its true preference: no sampling."""
    generator = torch.Generator().manual_seed(1)
    reference, reward = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    reference = reference.log_softmax(-1)
    beta, (first, second) = 0.7, torch.triu_indices(5, 5, 1)
    preferred = torch.sigmoid(reward[first] - reward[second])
    logits = reference.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=300, line_search_fn="strong_wolfe", tolerance_grad=1e-10
    )

    def closure():
        optimizer.zero_grad()
        log_ratio = logits.log_softmax(-1) - reference
        a, b = log_ratio[first], log_ratio[second]
        loss = preferred * f_dpo_loss(a, b, beta=beta, divergence=kind)
        loss = loss + (1 - preferred) * f_dpo_loss(b, a, beta=beta, divergence=kind)
        loss.sum().backward()
        return float(loss.detach().sum())

    optimizer.step(closure)
    optimum = optimal_policy(reference, reward, beta=beta, divergence=kind)
    assert (logits.softmax(-1) - optimum.exp()).abs().sum() / 2 < 1e-3
    assert (optimum.exp() - reference.exp()).abs().sum() / 2 > 0.05


@pytest.mark.parametrize(
    "kind",
    [*KINDS, SQUARED_HELLINGER, JENSEN_SHANNON, REVERSE_CHI_SQUARED],
    ids=lambda kind: kind.name,
)
@pytest.mark.parametrize("beta", [0.05, 1.0, 30.0])
def test_optimal_policy_beats_every_neighbour(kind, beta):
    """Also at betas so small that a divergence without a barrier gives outcomes up."""
    generator = torch.Generator().manual_seed(2)
    reference, reward = torch.randn(2, 4, 6, generator=generator, dtype=torch.float64)
    reference = reference.log_softmax(-1)

    def gain(probability):
        terms = kind.term(reference, probability.clamp_min(1e-300).log())
        return (probability * reward).sum(-1) - beta * terms.sum(-1)

    optimum = optimal_policy(reference, reward, beta=beta, divergence=kind).exp()
    torch.testing.assert_close(optimum.sum(-1), torch.ones(4, dtype=torch.float64))
    best = gain(optimum)
    for step in (1e-1, 1e-2, 1e-3):
        for _ in range(10):
            other = torch.rand(4, 6, generator=generator, dtype=torch.float64)
            other = other / other.sum(-1, keepdim=True)
            assert (gain((1 - step) * optimum + step * other) <= best + 1e-9).all()


@pytest.mark.parametrize(
    "kind",
    [*KINDS, SQUARED_HELLINGER, JENSEN_SHANNON, REVERSE_CHI_SQUARED],
    ids=lambda kind: kind.name,
)
@pytest.mark.parametrize("beta", [0.3, 3.0])
@pytest.mark.parametrize("worth", [-2.0, 2.5], ids=["poor", "best"])
def test_an_outcome_that_the_reference_excludes_is_the_limit_of_a_rare_one(kind, beta, worth):
    """Also where it has the best reward: under some divergences it then takes what is left."""
    reward = torch.tensor([0.5, -1.0, worth, 1.0, worth], dtype=torch.float64)
    excluding = torch.tensor([0.2, 0.5, 0.0, 0.3, 0.0], dtype=torch.float64)
    found = optimal_policy(excluding.log(), reward, beta=beta, divergence=kind).exp()
    # The reverse KL's limit is slow: exp(3.5 / 0.3) times 1e-12 may still be seen.
    rare = excluding.clamp_min(1e-60 if kind is REVERSE_KL else 1e-12)
    near = optimal_policy(rare.log(), reward, beta=beta, divergence=kind).exp()
    torch.testing.assert_close(found, near, atol=2e-4, rtol=0)
    torch.testing.assert_close(found.sum(), torch.ones((), dtype=torch.float64))
    if kind is REVERSE_KL or worth < 0:
        assert (found[[2, 4]] == 0).all()


def test_optimal_policy_under_the_reverse_kl_is_the_exponential_tilt():
    reference, reward = torch.randn(2, 7, generator=torch.Generator().manual_seed(3))
    found = optimal_policy(reference, reward, beta=0.5, divergence=REVERSE_KL)
    expected = (reference.log_softmax(-1) + reward / 0.5).log_softmax(-1)
    torch.testing.assert_close(found.float(), expected)


def test_is_the_composition_of_a_link_and_nothing_else():
    mixed = PreferenceObjective(beta=0.3, link=FORWARD_KL.derivative)
    found = [
        value_and_gradient(objective, *case()) for objective in (FDPO(0.3, "forward_kl"), mixed)
    ]
    torch.testing.assert_close(*found)


def test_logged_rewards_are_beta_times_the_link():
    batch, policy, reference = case()
    metrics = loss_of(FDPO(0.3, "forward_kl"), batch, policy, reference).metrics
    log_ratio = torch.where(batch.target, policy - reference, 0.0).sum(-1)[:3]
    torch.testing.assert_close(metrics["rewards/chosen"], 0.3 * (1 - torch.exp(-log_ratio)))


@pytest.mark.parametrize("kind", [TOTAL_VARIATION, REVERSE_CHI_SQUARED, alpha(-0.5), skew_kl(0.1)])
def test_divergences_whose_optimum_may_exclude_completions_are_refused(kind):
    with pytest.raises(InputError, match="exclude"):
        FDPO(f_divergence=kind)


def test_wrong_names_and_shapes_are_errors_that_speak():
    with pytest.raises(UnknownNameError, match="forward_kl"):
        FDPO(f_divergence="foward_kl")
    with pytest.raises(ShapeError, match=r"\[3\] and \[2\]"):
        optimal_policy(torch.zeros(3), torch.zeros(2), beta=1.0, divergence=REVERSE_KL)
    with pytest.raises(InputError, match="beta"):
        optimal_policy(torch.zeros(2), torch.zeros(2), beta=0.0, divergence=REVERSE_KL)
    nothing, infinite = torch.full((2,), -math.inf), torch.tensor([0.0, math.inf])
    with pytest.raises(InputError, match="every outcome"):
        optimal_policy(nothing, torch.zeros(2), beta=1.0, divergence=REVERSE_KL)
    with pytest.raises(InputError, match="finite"):
        optimal_policy(torch.zeros(2), infinite, beta=1.0, divergence=REVERSE_KL)


def test_is_filed_under_its_paper():
    assert objective["f-dpo"] is FDPO
    assert {entry.key: entry.paper for entry in objective}["f-dpo"] == 172
