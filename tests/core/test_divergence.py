import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenry.core.divergence import divergence, renyi
from tokenry.core.divergences import (
    CHI_SQUARED,
    DIVERGENCES,
    FORWARD_KL,
    JEFFREYS,
    JENSEN_SHANNON,
    REVERSE_KL,
    SQUARED_HELLINGER,
    TOTAL_VARIATION,
    alpha,
    divergence_named,
    jensen_shannon,
    skew_kl,
    skew_reverse_kl,
)
from tokenry.core.errors import InputError, ShapeError, UnknownNameError, VocabularyError
from tokenry.core.f_divergence import FDivergence
from tokenry.core.kl_estimators import k1, k2, k3

INF = math.inf

# f(u), f'(u), f(0), f'(inf), straight from the textbooks
GENERATORS = {
    "forward_kl": (lambda u: u * u.log(), lambda u: u.log() + 1, 0.0, INF),
    "reverse_kl": (lambda u: -u.log(), lambda u: -1 / u, INF, 0.0),
    "jeffreys": (lambda u: (u - 1) * u.log(), lambda u: u.log() + 1 - 1 / u, INF, INF),
    "jensen_shannon": (
        lambda u: (u * (2 * u / (1 + u)).log() + (2 / (1 + u)).log()) / 2,
        lambda u: (2 * u / (1 + u)).log() / 2,
        math.log(2) / 2,
        math.log(2) / 2,
    ),
    "jensen_shannon_sum": (
        lambda u: u * (2 * u / (1 + u)).log() + (2 / (1 + u)).log(),
        lambda u: (2 * u / (1 + u)).log(),
        math.log(2),
        math.log(2),
    ),
    "total_variation": (lambda u: (u - 1).abs() / 2, lambda u: (u - 1).sign() / 2, 0.5, 0.5),
    "squared_hellinger": (
        lambda u: (u.sqrt() - 1) ** 2 / 2,
        lambda u: (1 - u**-0.5) / 2,
        0.5,
        0.5,
    ),
    "chi_squared": (lambda u: (u - 1) ** 2, lambda u: 2 * (u - 1), 1.0, INF),
    "reverse_chi_squared": (lambda u: (1 - u) ** 2 / u, lambda u: 1 - u**-2, INF, 1.0),
    "alpha:0.5": (lambda u: 2 * (u.sqrt() - 1) ** 2, lambda u: 2 * (1 - u**-0.5), 2.0, 2.0),
    "alpha:2": (lambda u: (u - 1) ** 2 / 2, lambda u: u - 1, 0.5, INF),
    "alpha:-1": (
        lambda u: (1 / u + u - 2) / 2,
        lambda u: (1 - u**-2) / 2,
        INF,
        0.5,
    ),
    "jensen_shannon:0.3": (
        lambda u: 0.3 * u * (u / (0.3 * u + 0.7)).log() - 0.7 * (0.3 * u + 0.7).log(),
        lambda u: 0.3 * (u / (0.3 * u + 0.7)).log(),
        -0.7 * math.log(0.7),
        -0.3 * math.log(0.3),
    ),
    "skew_kl:0.1": (
        lambda u: u * (u / (0.1 * u + 0.9)).log(),
        lambda u: (u / (0.1 * u + 0.9)).log() + 0.9 / (0.1 * u + 0.9),
        0.0,
        -math.log(0.1),
    ),
    "skew_reverse_kl:0.1": (
        lambda u: -(0.1 + 0.9 * u).log(),
        lambda u: -0.9 / (0.1 + 0.9 * u),
        -math.log(0.1),
        0.0,
    ),
}
KINDS = [divergence_named(name) for name in GENERATORS]
SYMMETRIC = [JEFFREYS, JENSEN_SHANNON, TOTAL_VARIATION, SQUARED_HELLINGER, alpha(0.5)]
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)

seeds = st.integers(0, 10_000)
spreads = st.sampled_from([0.01, 1.0, 10.0])


def logits(seed, *shape, spread=1.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(*shape, generator=generator, dtype=dtype)


def pair(seed, *shape, **options):
    return logits(2 * seed, *shape, **options), logits(2 * seed + 1, *shape, **options)


@kinds
def test_generator_and_derivative_are_the_textbook_ones(kind):
    f, f_prime, at_zero, at_infinity = GENERATORS[kind.name]
    log_u = torch.linspace(-6, 6, 61, dtype=torch.float64)
    log_u = log_u[log_u.abs() > 0.01]  # total variation has no slope at u = 1
    torch.testing.assert_close(kind.f(log_u), f(log_u.exp()))
    torch.testing.assert_close(kind.f_prime(log_u), f_prime(log_u.exp()))
    limits = torch.tensor([-INF, 0.0, INF])
    torch.testing.assert_close(kind.f(limits)[:2], torch.tensor([at_zero, 0.0]))
    assert kind.f_prime(limits)[2].item() == pytest.approx(at_infinity)


@kinds
def test_terms_are_q_f_of_the_ratio_and_slopes_their_derivatives(kind):
    f, f_prime, *_ = GENERATORS[kind.name]
    p, q = (x.log_softmax(-1) for x in pair(0, 50))
    u = (p - q).exp()
    torch.testing.assert_close(kind.terms(p, q), q.exp() * f(u))
    torch.testing.assert_close(kind.slopes(p, q), q.exp() * (f(u) - u * f_prime(u)))
    torch.testing.assert_close(kind.reference_slopes(p, q), p.exp() * f_prime(u))


@kinds
@given(seed=seeds, spread=spreads, size=st.integers(2, 9))
def test_never_negative_and_zero_at_equality(kind, seed, spread, size):
    p, q = pair(seed, 3, size, spread=spread)
    assert (divergence(p, q, kind) >= -1e-12).all()
    assert divergence(p, p + 3.0, kind).abs().max() < 1e-12


@given(seed=seeds, spread=spreads)
def test_symmetric_divergences_are_symmetric_and_bounded_ones_bounded(seed, spread):
    p, q = pair(seed, 4, 7, spread=spread)
    for kind in SYMMETRIC:
        torch.testing.assert_close(divergence(p, q, kind), divergence(q, p, kind))
    for kind, bound in [
        (JENSEN_SHANNON, math.log(2)),
        (TOTAL_VARIATION, 1),
        (SQUARED_HELLINGER, 1),
    ]:
        assert (divergence(p, q, kind) <= bound + 1e-12).all()
    assert (divergence(p, q, skew_kl(0.1)) <= math.log(10)).all()


def test_relations_between_divergences():
    p, q = pair(5, 6, 8)

    def d(kind, a=p, b=q):
        return divergence(a, b, kind)

    torch.testing.assert_close(d(REVERSE_KL), d(FORWARD_KL, q, p))
    torch.testing.assert_close(d(JEFFREYS), d(FORWARD_KL) + d(REVERSE_KL))
    torch.testing.assert_close(d(alpha(0.5)), 4 * d(SQUARED_HELLINGER))
    torch.testing.assert_close(2 * d(alpha(2)), d(CHI_SQUARED))
    torch.testing.assert_close(d(alpha(1 - 1e-6)), d(FORWARD_KL), rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(d(alpha(1e-6)), d(REVERSE_KL), rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(d(skew_reverse_kl(0.2)), d(skew_kl(0.2), q, p))
    assert alpha(1) is FORWARD_KL
    assert alpha(0) is REVERSE_KL
    assert skew_kl(0) is FORWARD_KL


def test_agrees_with_torch_distributions():
    p, q = pair(3, 5, 11)
    p_dist, q_dist = (torch.distributions.Categorical(logits=x) for x in (p, q))
    expected = torch.distributions.kl_divergence(p_dist, q_dist)
    torch.testing.assert_close(divergence(p, q, FORWARD_KL), expected)


def test_closed_forms_of_two_coins():
    p, q = torch.tensor([0.75, 0.25]), torch.tensor([0.5, 0.5])
    values = {
        "forward_kl": 0.75 * math.log(1.5) + 0.25 * math.log(0.5),
        "reverse_kl": -0.5 * math.log(1.5) - 0.5 * math.log(0.5),
        "total_variation": 0.25,
        "squared_hellinger": 1 - math.sqrt(0.375) - math.sqrt(0.125),
        "chi_squared": 0.25,
    }
    for name, value in values.items():
        assert divergence(p.log(), q.log(), name).item() == pytest.approx(value, abs=1e-6)


@kinds
@pytest.mark.parametrize("top_k", [None, 2, 5])
def test_gradients_are_exact_also_with_excluded_tokens(kind, top_k):
    p, q = pair(1, 2, 6)
    p[:, 4] = q[:, 4] = -INF  # both: only an excluded token of both keeps every divergence finite
    p.requires_grad_()
    q.requires_grad_()
    value = divergence(p, q, kind, top_k=top_k).sum()
    gradients = torch.autograd.grad(value, (p, q))
    assert value.isfinite()
    for gradient in gradients:
        assert gradient.isfinite().all()
        assert (gradient[:, 4] == 0).all()
    keep = [0, 1, 2, 3, 5]
    plain = [x.detach()[:, keep].requires_grad_() for x in (p, q)]
    assert torch.autograd.gradcheck(lambda a, b: divergence(a, b, kind, top_k=top_k), plain)
    smaller = divergence(*plain, kind, top_k=top_k).sum()
    torch.testing.assert_close(value, smaller)
    for gradient, expected in zip(gradients, torch.autograd.grad(smaller, plain), strict=True):
        torch.testing.assert_close(gradient[:, keep], expected)


@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zeros_take_the_limits_of_the_generator(kind, dtype):
    *_, at_zero, at_infinity = GENERATORS[kind.name]
    half = math.log(0.5)
    p = torch.tensor([-INF, -INF, half, -500.0, -500.0], dtype=dtype)
    q = torch.tensor([-INF, half, -INF, half, -INF], dtype=dtype)
    terms = kind.terms(p, q)
    assert not terms.isnan().any()
    assert terms[0] == 0
    assert terms[1].item() == pytest.approx(0.5 * at_zero)
    assert terms[2].item() == pytest.approx(0.5 * at_infinity)
    for slopes in (kind.slopes(p, q), kind.reference_slopes(p, q)):
        assert not slopes[:3].isnan().any()
        assert slopes[0] == 0


@pytest.mark.parametrize(
    "kind", [JENSEN_SHANNON, TOTAL_VARIATION, SQUARED_HELLINGER, alpha(0.5)], ids=lambda k: k.name
)
def test_bounded_divergences_have_gradients_under_different_supports(kind):
    p, q = pair(8, 6)
    p[2] = q[4] = -INF
    q.requires_grad_()
    value = divergence(p, q, kind)
    (gradient,) = torch.autograd.grad(value, q)
    assert value.isfinite()
    assert gradient.isfinite().all()
    step = 1e-6
    for v in (0, 2, 5):
        moved = q.detach().clone()
        moved[v] += step
        slope = (divergence(p, moved, kind) - value) / step
        assert gradient[v].item() == pytest.approx(slope.item(), abs=1e-5)


@pytest.mark.parametrize("kind", [FORWARD_KL, skew_kl(0.1)], ids=lambda k: k.name)
def test_reference_may_exclude_what_the_policy_allows(kind):
    p, q = pair(9, 6)
    p[2] = -INF
    q.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: divergence(p, x, kind), q)


@kinds
def test_extreme_logits_in_float32_match_float64(kind):
    p, q = pair(4, 20, 30, spread=8.0)
    exact = divergence(p, q, kind)
    single = divergence(p.float(), q.float(), kind)
    assert single.dtype == torch.float32
    finite = exact < 1e30
    torch.testing.assert_close(single[finite].double(), exact[finite], rtol=1e-4, atol=1e-5)
    far = torch.tensor([0.0, -150.0]), torch.tensor([-150.0, 0.0])
    assert not divergence(*far, kind).isnan()


def test_nan_logits_are_not_hidden():
    p, q = pair(2, 4)
    p[1] = math.nan
    for kind in KINDS:
        assert divergence(p, q, kind).isnan()


@kinds
@given(seed=seeds, spread=spreads, top_k=st.integers(1, 12))
def test_top_k_with_tail_is_a_lower_bound_that_grows_with_k(kind, seed, spread, top_k):
    p, q = pair(seed, 4, 12, spread=spread)
    exact = divergence(p, q, kind)
    coarse = divergence(p, q, kind, top_k=top_k)
    finer = divergence(p, q, kind, top_k=top_k + 1)
    slack = 1e-9 * (1 + exact.abs())
    assert (coarse <= finer + slack).all()
    assert (finer <= exact + slack).all()
    if top_k == 12:
        torch.testing.assert_close(coarse, exact)


def test_top_k_with_tail_is_exact_when_the_ratio_is_constant_over_the_tail():
    p = logits(1, 10)
    q = p.clone()
    top = p.topk(3).indices
    q[top] += torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    for kind in KINDS:
        torch.testing.assert_close(divergence(p, q, kind, top_k=3), divergence(p, q, kind))


def test_top_k_without_tail_sums_over_the_support_only():
    p, q = pair(6, 3, 10)
    top = p.topk(4).indices
    p_logprob, q_logprob = (x.log_softmax(-1).gather(-1, top) for x in (p, q))
    expected = (p_logprob.exp() * (p_logprob - q_logprob)).sum(-1)
    torch.testing.assert_close(divergence(p, q, FORWARD_KL, top_k=4, tail=False), expected)


def test_temperature_divides_both_logits():
    p, q = pair(7, 3, 5)
    for kind in KINDS:
        expected = divergence(p / 2.5, q / 2.5, kind)
        torch.testing.assert_close(divergence(p, q, kind, temperature=2.5), expected)


def test_half_precision_is_computed_in_float32():
    p, q = (x.bfloat16() for x in pair(7, 3, 5))
    value = divergence(p, q, FORWARD_KL)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, divergence(p.float(), q.float(), FORWARD_KL))


@given(seed=seeds)
def test_renyi_is_nondecreasing_in_its_order_and_has_its_limits(seed):
    p, q = pair(seed, 3, 6)
    p[:, 1] = q[:, 1] = -INF
    orders = [0, 0.3, 0.5, 0.999999, 1, 1.000001, 2, 5, 200, INF]
    values = torch.stack([renyi(p, q, order) for order in orders])
    assert (values.diff(dim=0) >= -1e-6).all()
    torch.testing.assert_close(values[3], values[4], rtol=1e-4, atol=1e-7)
    bhattacharyya = -2 * (1 - divergence(p, q, SQUARED_HELLINGER)).log()
    torch.testing.assert_close(values[2], bhattacharyya)
    torch.testing.assert_close(values[6], (1 + divergence(p, q, CHI_SQUARED)).log())


def test_renyi_of_order_zero_and_infinity_under_excluded_tokens():
    p = torch.tensor([0.5, 0.5, 0.0]).log()
    q = torch.tensor([0.25, 0.25, 0.5]).log()
    assert renyi(p, q, 0).item() == pytest.approx(math.log(2))
    assert renyi(p, q, INF).item() == pytest.approx(math.log(2))
    assert renyi(q, p, 2).item() == INF


def test_renyi_gradients_with_excluded_tokens():
    p, q = pair(3, 5)
    p[1] = q[1] = -INF
    keep = [0, 2, 3, 4]
    for order in (0.5, 2.0):
        whole = [x.clone().requires_grad_() for x in (p, q)]
        gradients = torch.autograd.grad(renyi(*whole, order), whole)
        assert all(g.isfinite().all() for g in gradients)
        plain = [x[keep].requires_grad_() for x in (p, q)]
        assert torch.autograd.gradcheck(lambda a, b, order=order: renyi(a, b, order), plain)


def test_sampled_estimators_against_enumeration():
    policy, reference = (x.log_softmax(-1) for x in pair(11, 5))
    exact = divergence(reference, policy, REVERSE_KL)  # KL(policy || reference)
    log_ratio = policy - reference
    mean = {k.__name__: (policy.exp() * k(log_ratio)).sum() for k in (k1, k2, k3)}
    torch.testing.assert_close(mean["k1"], exact)
    torch.testing.assert_close(mean["k3"], exact)
    assert abs(mean["k2"] - exact) > 1e-3 * exact
    assert (k2(log_ratio) >= 0).all()
    assert (k3(log_ratio) >= 0).all()
    # near equality k2's bias vanishes faster than the KL itself
    near = (reference + 0.001 * log_ratio).log_softmax(-1)
    small = divergence(reference, near, REVERSE_KL)
    assert (near.exp() * k2(near - reference)).sum() / small == pytest.approx(1, abs=1e-2)


def test_sampled_k2_has_the_gradient_of_the_divergence():
    policy_logits, reference = pair(12, 5)
    policy_logits.requires_grad_()
    reference = reference.log_softmax(-1)
    policy = policy_logits.log_softmax(-1)
    probability = policy.detach().exp()  # tokens are drawn, their sampling is not differentiated
    (sampled,) = torch.autograd.grad((probability * k2(policy - reference)).sum(), policy_logits)
    (exact,) = torch.autograd.grad(divergence(reference, policy_logits, REVERSE_KL), policy_logits)
    torch.testing.assert_close(sampled, exact)


def test_k3_misses_the_reference_mass_that_the_policy_excludes():
    policy, reference = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.4, 0.4, 0.2])
    log_ratio = (policy[:2] / reference[:2]).log()
    exact = (policy[:2] * log_ratio).sum()
    assert (policy[:2] * k3(log_ratio)).sum().item() == pytest.approx(exact.item() - 0.2, abs=1e-6)


def test_a_generator_makes_the_same_divergence():
    def f(log_u):
        return (log_u / 2).exp().sub(1).square() / 2

    def f_prime(log_u):
        return (1 - (-log_u / 2).exp()) / 2

    own = FDivergence.from_generator("own", f, f_prime)
    p, q = pair(13, 4, 6)
    p[0, 1] = q[0, 1] = -INF
    p[1, 2] = -INF
    q[2, 3] = -INF
    results = []
    for kind in (own, SQUARED_HELLINGER):
        student = q.clone().requires_grad_()
        value = divergence(p, student, kind)
        results.append((value, *torch.autograd.grad(value.sum(), student)))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_names_find_their_divergences():
    assert set(DIVERGENCES) <= set(GENERATORS)
    for kind in KINDS:
        assert divergence_named(kind.name) == kind
        assert pickle.loads(pickle.dumps(kind)) == kind
    assert divergence_named("alpha:1") is FORWARD_KL
    assert jensen_shannon(0.5) == JENSEN_SHANNON
    with pytest.raises(UnknownNameError, match="forward_kl"):
        divergence_named("foward_kl")
    with pytest.raises(InputError, match=r"alpha:0\.5"):
        divergence_named("alpha")
    with pytest.raises(InputError, match="not a number"):
        divergence_named("skew_kl:much")
    with pytest.raises(InputError, match=r"lam is 1.0.*\[0, 1\)"):
        divergence_named("skew_kl:1")


def test_wrong_inputs_say_what_is_wrong():
    p, q = torch.zeros(2, 5), torch.zeros(2, 6)
    with pytest.raises(VocabularyError, match="5 and 6"):
        divergence(p, q, FORWARD_KL)
    with pytest.raises(ShapeError, match=r"\[2, 5\] and \[3, 5\]"):
        divergence(p, torch.zeros(3, 5), FORWARD_KL)
    with pytest.raises(InputError, match="temperature"):
        divergence(p, p, FORWARD_KL, temperature=0)
    with pytest.raises(InputError, match="top_k"):
        divergence(p, p, FORWARD_KL, top_k=0)
    with pytest.raises(InputError, match="order"):
        renyi(p, p, -1)


@kinds
def test_derivative_is_the_slope_in_the_policys_probability(kind):
    """By autograd through the divergence itself, up to the constant that makes it 0 at p = q."""
    p, q = (x.softmax(-1) for x in pair(21, 40, spread=2.0))
    q.requires_grad_()
    (slope,) = torch.autograd.grad(kind.terms(p.log(), q.log()).sum(), q)
    log_ratio = (q.detach() / p).log()
    found = kind.derivative(log_ratio)
    at_equality = kind.slopes(torch.zeros(1, dtype=p.dtype), torch.zeros(1, dtype=p.dtype))
    torch.testing.assert_close(found, slope - at_equality)
    assert kind.derivative(torch.zeros(3)).abs().max() < 1e-6


@kinds
def test_derivative_grows_and_is_differentiable_and_finite_however_far_apart(kind):
    near = torch.linspace(-6, 6, 41, dtype=torch.float64, requires_grad=True)
    if kind != TOTAL_VARIATION:  # a step
        assert torch.autograd.gradcheck(kind.derivative, near)
    for dtype in (torch.float32, torch.float64):
        far = torch.tensor([-1e18, -1e4, -500, -50, 0, 50, 500, 1e4, 1e18], dtype=dtype)
        far.requires_grad_()
        values = kind.derivative(far)
        (gradient,) = torch.autograd.grad(values.sum(), far)
        assert (values.diff() >= 0).all()
        assert gradient.isfinite().all()
        assert (gradient >= 0).all()
        if kind not in (REVERSE_KL, JENSEN_SHANNON, JEFFREYS):
            assert values.square().sum().isfinite() or kind.name.startswith(("jensen", "skew_rev"))


INVERTIBLE = [kind for kind in KINDS if kind.inverse_link is not None]


@pytest.mark.parametrize("kind", INVERTIBLE, ids=lambda kind: kind.name)
def test_inverse_derivative_undoes_derivative_and_saturates_outside_its_values(kind):
    log_ratio = torch.linspace(-8, 8, 41, dtype=torch.float64)
    values = kind.derivative(log_ratio)
    torch.testing.assert_close(kind.inverse_derivative(values), log_ratio, rtol=1e-6, atol=1e-6)
    beyond = kind.derivative(torch.tensor([-30.0, 30.0], dtype=torch.float64))
    below, above = kind.inverse_derivative(beyond + torch.tensor([-1e30, 1e30]))
    assert below <= -30
    assert above >= 30
    assert not below.isnan()
    assert not above.isnan()


def test_derivatives_have_the_closed_forms_of_the_papers():
    """f'(t) at t = 2, and at log t = ±ln 2 of f-DPO's table; constants fixed by f'(1) = 0."""
    log_two = torch.tensor([math.log(2), -math.log(2)], dtype=torch.float64)
    expected = {
        "reverse_kl": (math.log(2), -math.log(2)),
        "forward_kl": (0.5, -1.0),
        "jensen_shannon_sum": (math.log(4 / 3), math.log(2 / 3)),
        "alpha:0.5": (2 * (1 - 0.5**0.5), 2 * (1 - 2**0.5)),
        "total_variation": (0.5, -0.5),
        "chi_squared": (0.75, -3.0),
        "reverse_chi_squared": (2.0, -1.0),
    }
    for name, values in expected.items():
        found = divergence_named(name).derivative(log_two)
        torch.testing.assert_close(found, torch.tensor(values, dtype=torch.float64))


def test_jensen_shannon_sum_is_twice_the_mean():
    p, q = pair(22, 3, 6)
    torch.testing.assert_close(
        divergence(p, q, "jensen_shannon_sum"), 2 * divergence(p, q, JENSEN_SHANNON)
    )
    log_ratio = torch.linspace(-5, 5, 11)
    torch.testing.assert_close(
        divergence_named("jensen_shannon_sum").derivative(log_ratio),
        2 * JENSEN_SHANNON.derivative(log_ratio),
    )


def test_a_divergence_without_link_or_inverse_says_so():
    own = FDivergence.from_generator("own", torch.expm1, torch.ones_like)
    with pytest.raises(InputError, match="no `link`"):
        own.derivative(torch.zeros(1))
    with pytest.raises(InputError, match="no inverse"):
        JEFFREYS.inverse_derivative(torch.zeros(1))
