"""Outcomes of probability 0 (-inf): every function has the limit of ever rarer outcomes.

The same entries are -inf once and -600 once, which is probability 0 for every purpose but a
logarithm's. Values and gradients of both must agree; what becomes infinite must be infinite, and
its gradient, asked for or not, must not spoil that of the others.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenry.core import aggregate, divergence, divergences, kl_estimators, signals, tilting
from tokenry.core.fused import fused_scores, fused_top_k
from tokenry.core.fused_divergence import fused_divergence
from tokenry.core.linear_head import LinearHead

N, V = 4, 6
RARE = -600.0
generator = torch.Generator().manual_seed(5)
REWARD = torch.randn(N, V, generator=generator, dtype=torch.float64)
TIED = REWARD.round()
IDS = torch.randint(V, (N,), generator=generator)
KINDS = [
    *divergences.DIVERGENCES.values(),
    *(divergences.alpha(a) for a in (-0.5, 0.5, 1.5)),
    divergences.skew_kl(),
    divergences.skew_reverse_kl(),
    divergences.jensen_shannon(0.3),
]


def kl(p, q):
    return tilting.kl_divergence(p.log_softmax(-1), q.log_softmax(-1))


ONE = {
    "surprisal": lambda x: signals.surprisal(x, IDS),
    "entropy": signals.entropy,
    "varentropy": signals.varentropy,
    "margin": signals.margin,
    "tilt": lambda x: tilting.tilt(x, REWARD, 0.7).exp(),
    "log_partition": lambda x: tilting.log_partition(x, REWARD, 0.7),
    "best_of_n": lambda x: tilting.best_of_n_distribution(x, REWARD, 3.5).exp(),
    "best_of_n_tied": lambda x: tilting.best_of_n_distribution(x, TIED, 2).exp(),
}
TWO = {
    "kl": kl,
    "signal": lambda p, q: signals.divergence(q, reference=p),
    "renyi_half": lambda p, q: divergence.renyi(p, q, 0.5),
    "renyi_two": lambda p, q: divergence.renyi(p, q, 2.0),
    **{kind.name: lambda p, q, kind=kind: divergence.divergence(p, q, kind) for kind in KINDS},
    **{
        f"{kind.name}_top": lambda p, q, kind=kind: divergence.divergence(p, q, kind, top_k=3)
        for kind in KINDS
    },
}


@st.composite
def sides(draw, count):
    """`count` sides of logits [N, V], and which of them are excluded; every row keeps some."""
    seed = draw(st.integers(0, 10_000))
    source = torch.Generator().manual_seed(seed)
    logits = [torch.randn(N, V, generator=source, dtype=torch.float64) for _ in range(count)]
    excluded = [torch.rand(N, V, generator=source) < 0.4 for _ in range(count)]
    for mask in excluded:
        mask[torch.arange(N), torch.randint(V, (N,), generator=source)] = False
    return logits, excluded


def value_and_gradients(function, logits, excluded, low):
    leaves = [x.masked_fill(m, low).requires_grad_() for x, m in zip(logits, excluded, strict=True)]
    value = function(*leaves)
    finite = value.isfinite()
    return value.detach(), torch.autograd.grad(torch.where(finite, value, 0.0).sum(), leaves)


@pytest.mark.parametrize("name", [*ONE, *TWO])
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_an_excluded_outcome_is_the_limit_of_a_rare_one(name, data):
    function, count = (ONE[name], 1) if name in ONE else (TWO[name], 2)
    logits, excluded = data.draw(sides(count))
    value, gradients = value_and_gradients(function, logits, excluded, -math.inf)
    near, near_gradients = value_and_gradients(function, logits, excluded, RARE)
    assert not value.isnan().any()
    assert all(gradient.isfinite().all() for gradient in gradients)
    finite = value.isfinite()
    torch.testing.assert_close(value[finite], near[finite], atol=1e-8, rtol=1e-8)
    assert (value[~finite] == math.inf).all()
    # hundreds of nats times the mass that one side lacks, or worse
    assert (near[~finite] > 1).all()
    if finite.all():
        torch.testing.assert_close(gradients, near_gradients, atol=1e-8, rtol=1e-8)


@settings(max_examples=25, deadline=None)
@given(case=sides(2), kind=st.sampled_from(KINDS))
def test_tiles_of_a_head_agree_with_its_logits_where_a_bias_excludes_tokens(case, kind):
    """A bias of -inf is how a head excludes tokens; gradients of unused rows stay 0."""
    (hidden, other), _ = case
    excluded = [mask[0] for mask in case[1]]
    heads = []
    for mask, seed in zip(excluded, (1, 2), strict=True):
        source = torch.Generator().manual_seed(seed)
        weight = torch.randn(V, V, generator=source, dtype=torch.float64)
        bias = torch.zeros(V, dtype=torch.float64).masked_fill(mask, -math.inf)
        heads.append(LinearHead(weight, bias))
    p_logits, q_logits = heads[1].logits(other), heads[0].logits(hidden)
    allowed = (~excluded[0]).nonzero()[:, 0]
    ids = allowed[IDS % len(allowed)]

    leaf = hidden.clone().requires_grad_()
    scores = fused_scores(leaf, heads[0], ids, entropy=True)
    torch.testing.assert_close(scores.logprob, -signals.surprisal(q_logits, ids))
    torch.testing.assert_close(scores.entropy, signals.entropy(q_logits))
    (scores.logprob.sum() + scores.entropy.sum()).backward()
    assert leaf.grad.isfinite().all()

    leaf = hidden.clone().requires_grad_()
    found = fused_divergence(leaf, heads[0], other, heads[1], kind)
    torch.testing.assert_close(found, divergence.divergence(p_logits, q_logits, kind))
    torch.where(found.isfinite(), found, 0.0).sum().backward()
    assert leaf.grad.isfinite().all()

    top = fused_top_k(hidden, heads[0], V)
    assert (top.logprob[:, len(allowed) :] == -math.inf).all()
    assert top.logprob[:, : len(allowed)].isfinite().all()


@settings(max_examples=20, deadline=None)
@given(case=sides(1), mode=st.sampled_from(aggregate.MODES))
def test_masked_log_probabilities_of_minus_infinity_leak_nowhere(case, mode):
    [values], [excluded] = case
    leaf = values.masked_fill(excluded, -math.inf).requires_grad_()
    length = 3.0 if mode == "constant-length" else None
    found = aggregate.aggregate(leaf, ~excluded, mode, length=length)
    expected = aggregate.aggregate(values, ~excluded, mode, length=length)
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found, leaf)
    assert gradient.isfinite().all()
    assert (gradient[excluded] == 0).all()


@pytest.mark.parametrize("estimator", [kl_estimators.k1, kl_estimators.k2, kl_estimators.k3])
def test_estimators_of_a_token_that_one_side_excludes(estimator):
    ratio = torch.tensor([-math.inf, 0.5, math.inf], dtype=torch.float64, requires_grad=True)
    found = estimator(ratio)
    assert not found.isnan().any()
    assert found[0].abs() == found[2] == math.inf
    (gradient,) = torch.autograd.grad(found[1], ratio)
    assert gradient.isfinite().all()
    assert estimator(ratio.detach().bfloat16()).dtype == torch.float32


def test_a_symbol_that_never_comes_changes_no_alignment():
    coin, three = (torch.tensor(p, dtype=torch.float64).log() for p in ([0.7, 0.3], [0.7, 0, 0.3]))
    plain = tilting.memoryless_alignment(coin, [0.0, 1.0], 6, 0.1)
    found = tilting.memoryless_alignment(three, [0.0, 9.0, 1.0], 6, 0.1)
    assert vars(found) == pytest.approx(vars(plain), abs=1e-9)


def test_a_rare_outcome_of_best_of_n_keeps_its_logarithm():
    """Far below the smallest float64: n draws find it n times as often."""
    logprob = torch.tensor([0.0, -1500.0], dtype=torch.float64)
    best = tilting.best_of_n_distribution(logprob, torch.tensor([0.0, 1.0]), 8)
    assert float(best[1]) == pytest.approx(-1500 + math.log(8), abs=1e-9)


@given(st.integers(0, 1000), st.sampled_from([1.0, 1.5, 2.0, 40.0]))
def test_gradients_of_best_of_n_are_finite_differences(seed, n):
    source = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, generator=source, dtype=torch.float64, requires_grad=True)
    reward = torch.randint(3, (5,), generator=source).double()
    assert torch.autograd.gradcheck(
        lambda x: tilting.best_of_n_distribution(x, reward, n), logits, atol=1e-6
    )


@pytest.mark.parametrize(
    "function", [*ONE.values(), *TWO.values()], ids=[*ONE, *TWO]
)  # fmt: skip
def test_half_precision_logits_are_computed_in_float32(function):
    source = torch.Generator().manual_seed(3)
    count = 1 if function in ONE.values() else 2
    logits = [torch.randn(N, V, generator=source).mul(8).bfloat16() for _ in range(count)]
    found = function(*logits)
    expected = function(*(x.float() for x in logits))
    if function is kl:  # normalised by the caller, in the caller's precision
        expected = tilting.kl_divergence(*(x.log_softmax(-1).float() for x in logits))
    assert found.dtype in (torch.float32, torch.float64)
    torch.testing.assert_close(found, expected)


def test_a_distribution_that_excludes_everything_is_refused():
    for wrong in ([-math.inf] * 2, [0.0, math.inf], [0.0, math.nan]):
        with pytest.raises(ValueError, match="logprob"):
            tilting.tilt(torch.tensor(wrong), torch.zeros(2), 1.0)
    with pytest.raises(ValueError, match="alpha"):
        tilting.tilt(torch.zeros(2), torch.zeros(2), math.inf)
