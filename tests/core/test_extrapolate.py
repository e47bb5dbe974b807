"""Extrapolation against plain softmax arithmetic on the full logits."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError, ShapeError, VocabularyError
from tokenry.core.extrapolate import extrapolate, extrapolated
from tokenry.core.linear_head import LinearHead
from tokenry.core.scores import Scores

V = 6


def made(batch, seed, width=4, vocabulary=V, **options):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(*batch.shape, width, generator=generator, dtype=torch.float64)
    weight = torch.randn(vocabulary, width, generator=generator, dtype=torch.float64)
    if options.pop("bias", False):
        options["bias"] = torch.randn(vocabulary, generator=generator, dtype=torch.float64)
    return Scores(batch.ids, batch.target, hidden=hidden, head=LinearHead(weight, **options))


@pytest.fixture
def batch():
    return TokenBatch.from_ids([[1, 2, 3, 4], [5, 0, 2]])


def reference_logprob(a, b, weight):
    z_a, z_b = a.logits(), b.logits()
    logits = z_a + weight * (z_a - z_b)
    return logits.log_softmax(-1)


@given(weight=st.floats(-0.9, 8.0), bias=st.booleans(), temperature=st.sampled_from([1.0, 0.7]))
def test_is_softmax_of_the_extrapolated_logits(weight, bias, temperature):
    batch = TokenBatch.from_ids([[1, 2, 3, 4], [5, 0, 2]])
    a = made(batch, 0, bias=bias, temperature=temperature)
    b = made(batch, 1, width=3)  # another model may have another width
    found = extrapolate(a, b, weight, needs=("logprob", "entropy"))
    exact = reference_logprob(a, b, weight)
    chosen = exact.gather(1, batch.ids[batch.target][:, None])[:, 0]
    torch.testing.assert_close(found.need("logprob")[batch.target], chosen)
    entropy = -(exact.exp() * exact).sum(-1)
    torch.testing.assert_close(found.need("entropy")[batch.target], entropy)
    torch.testing.assert_close(found.logits().log_softmax(-1), exact)


def test_weight_zero_is_the_first_model_and_one_weight_a_token_is_allowed(batch):
    a, b = made(batch, 0), made(batch, 1)
    same = extrapolate(a, b, 0.0)
    exact = a.logits().log_softmax(-1).gather(1, batch.ids[batch.target][:, None])[:, 0]
    torch.testing.assert_close(same.need("logprob")[batch.target], exact)
    weights = torch.rand(batch.shape, dtype=torch.float64)
    found = extrapolate(a, b, weights)
    exact = reference_logprob(a, b, weights[batch.target][:, None])
    exact = exact.gather(1, batch.ids[batch.target][:, None])[:, 0]
    torch.testing.assert_close(found.need("logprob")[batch.target], exact)
    assert not found.need("logprob")[~batch.target].any()


def test_full_logits_give_the_same(batch):
    a, b = made(batch, 0), made(batch, 1)
    plain = [Scores(s.ids, s.mask, full_logits=s.logits()) for s in (a, b)]
    for weight in (0.5, torch.rand(batch.shape, dtype=torch.float64)):
        torch.testing.assert_close(
            extrapolate(*plain, weight).need("logprob"), extrapolate(a, b, weight).need("logprob")
        )


INF = torch.inf


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        (0.5, [-1.0, -INF, -INF, -2.0]),  # excluded by b alone: nothing to contrast with
        (0.0, [-1.0, -INF, -INF, -2.0]),
        (-0.5, [-1.0, -INF, -INF, -INF]),
        (-1.0, [-1.0, -0.5, -INF, -INF]),  # b itself
    ],
)
def test_impossible_tokens_give_no_nan_and_no_plus_infinity(weight, expected):
    a = torch.tensor([-1.0, -INF, -INF, -2.0], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([-1.0, -0.5, -INF, -INF], dtype=torch.float64)
    for form in (weight, torch.full((4,), weight, dtype=torch.float64)):
        found = extrapolated(a, b, form)
        assert found.tolist() == expected
        found[found > -INF].sum().backward()
        assert a.grad.isfinite().all()


@pytest.mark.parametrize("weight", [2.0, -0.5])
def test_scores_whose_logits_exclude_tokens_are_extrapolated_over_the_others(batch, weight):
    sides = []
    for seed, excluded in ((0, [3, 4]), (1, [4, 5])):
        s = made(batch, seed)
        logits = s.logits().index_fill(1, torch.tensor(excluded), -INF)
        sides.append(Scores(s.ids, s.mask, full_logits=logits + 7.0 * seed))
    found = extrapolate(*sides, weight, needs=("logprob", "entropy"))
    assert not found.need("logprob").isnan().any()
    assert found.need("entropy").isfinite().all()
    own, other = (s.full_logits.log_softmax(-1) for s in sides)
    unnormalised = own + weight * (own - other)
    unnormalised[:, [3, 4]] = -INF
    unnormalised[:, 5] = own[:, 5] if weight > 0 else -INF
    torch.testing.assert_close(found.logits().softmax(-1), unnormalised.softmax(-1))


@pytest.mark.parametrize("weight", [float("nan"), INF])
def test_a_weight_that_is_no_number_is_refused(batch, weight):
    a, b = made(batch, 0), made(batch, 1)
    with pytest.raises(InputError, match="weight"):
        extrapolate(a, b, weight)
    with pytest.raises(InputError, match="weight"):
        extrapolate(a, b, torch.full(batch.shape, weight))


def test_gradients_reach_both_hidden_states(batch):
    a, b = made(batch, 0), made(batch, 1)
    a.hidden.requires_grad_()
    b.hidden.requires_grad_()
    extrapolate(a, b, 0.5).need("logprob").sum().backward()
    by_hand = [s.hidden.detach().clone().requires_grad_() for s in (a, b)]
    z_a, z_b = (h[batch.target] @ s.head.weight.T for h, s in zip(by_hand, (a, b), strict=True))
    logprob = (z_a + 0.5 * (z_a - z_b)).log_softmax(-1)
    logprob.gather(1, batch.ids[batch.target][:, None]).sum().backward()
    torch.testing.assert_close(a.hidden.grad, by_hand[0].grad)
    torch.testing.assert_close(b.hidden.grad, by_hand[1].grad)


def test_what_cannot_be_extrapolated_is_an_error(batch):
    a = made(batch, 0)
    with pytest.raises(VocabularyError):
        extrapolate(a, made(batch, 1, vocabulary=7), 1.0)
    with pytest.raises(InputError, match="soft cap"):
        extrapolate(a, made(batch, 1, softcap=30.0), 1.0)
    head = LinearHead(a.head.weight, bias=torch.tensor([0, 0, 0, 0, 0, -INF]))
    with pytest.raises(InputError, match="excludes"):
        extrapolate(a, Scores(a.ids, a.mask, hidden=a.hidden, head=head), 1.0)
    with pytest.raises(InputError, match="hidden"):
        extrapolate(a, Scores(batch.ids, batch.target), 1.0)
    with pytest.raises(ShapeError):
        extrapolate(a, made(TokenBatch.from_ids([[1, 2]]), 1), 1.0)
    with pytest.raises(ShapeError):
        extrapolate(a, made(batch, 1), torch.ones(3))


def test_half_precision_states_are_combined_in_full_precision(batch):
    a, b = made(batch, 0), made(batch, 1)
    low = [
        Scores(s.ids, s.mask, hidden=s.hidden.bfloat16(), head=LinearHead(s.head.weight.bfloat16()))
        for s in (a, b)
    ]
    whole = [
        Scores(s.ids, s.mask, hidden=s.hidden.double(), head=LinearHead(s.head.weight.double()))
        for s in low
    ]
    found = extrapolate(*low, 20.0).need("logprob")
    torch.testing.assert_close(
        found.double(), extrapolate(*whole, 20.0).need("logprob"), rtol=1e-4, atol=1e-3
    )
