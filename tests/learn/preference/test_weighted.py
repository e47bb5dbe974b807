"""The weighted-DPO core against the equation written out, and its free composition."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import logsigmoid

from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError, ShapeError, UnknownNameError
from tokenry.core.scores import Scores
from tokenry.learn.preference.dpo import DPO
from tokenry.learn.preference.pairs import blocks, implicit_token_rewards
from tokenry.learn.preference.tdpo import TDPO, KLMargin
from tokenry.learn.preference.weighted import (
    ColumnWeight,
    PreferenceObjective,
    add_terms,
    pair_loss,
    preference_loss,
)


def case(seed=0):
    """Two pairs with completions of 3, 2 / 1, 4 tokens, and random scores."""
    lengths = (3, 2, 1, 4)
    batch = TokenBatch.from_ids(
        [[9] + [1] * n for n in lengths],
        [[False] + [True] * n for n in lengths],
        group=[0, 1, 0, 1],
    )
    generator = torch.Generator().manual_seed(seed)

    def numbers():
        return torch.randn(batch.shape, generator=generator, dtype=torch.float64)

    policy = Scores(batch.ids, batch.target, logprob=numbers(), divergence=numbers().abs())
    return batch, policy, Scores(batch.ids, batch.target, logprob=numbers()), numbers().abs()


@given(
    beta=st.floats(0.05, 2.0),
    mean=st.booleans(),
    smoothing=st.floats(0, 0.4),
    seed=st.integers(0, 9),
)
def test_is_the_equation(beta, mean, smoothing, seed):
    batch, policy, reference, weight = case(seed)
    margin = torch.tensor([0.3, -0.2, 0.1, 0.4], dtype=torch.float64)
    loss = preference_loss(
        batch,
        policy,
        reference,
        beta=beta,
        weight=weight,
        margin=margin,
        link=lambda r: torch.tanh(r),
        reduction="mean" if mean else "sum",
        label_smoothing=smoothing,
    )
    rewards = []
    for row, length in enumerate((3, 2, 1, 4)):
        total = sum(
            float(weight[row, t] * (policy.logprob[row, t] - reference.logprob[row, t]))
            for t in range(1, 1 + length)
        )
        rewards.append(math.tanh(total / length if mean else total) + float(margin[row]))
    expected = []
    for pair in (0, 1):
        h = beta * (rewards[pair] - rewards[pair + 2])
        expected.append(
            (1 - smoothing) * math.log1p(math.exp(-h)) + smoothing * math.log1p(math.exp(h))
        )
    torch.testing.assert_close(loss.metrics["loss"], torch.tensor(expected, dtype=torch.float64))
    assert float(loss.loss) == pytest.approx(sum(expected) / 2)
    margins = loss.metrics["rewards/margin"].tolist()
    assert margins == pytest.approx([beta * (rewards[p] - rewards[p + 2]) for p in (0, 1)])


def test_weights_that_are_learned_get_their_gradient_and_garbage_outside_gives_none():
    batch, policy, reference, weight = case()
    spoiled = torch.where(batch.target, weight, torch.nan).requires_grad_()
    logprob = torch.where(batch.target, policy.logprob, torch.inf).requires_grad_()
    scores = Scores(batch.ids, batch.target, logprob=logprob)
    preference_loss(batch, scores, reference, beta=0.5, weight=spoiled).loss.backward()
    assert torch.isfinite(spoiled.grad).all()
    assert torch.isfinite(logprob.grad).all()
    assert not spoiled.grad[~batch.target].any()
    # d loss / d w_t = -sigmoid(-h) beta (+-) rho_t / pairs
    clean = preference_loss(batch, policy, reference, beta=0.5, weight=weight)
    slope = -torch.exp(logsigmoid(-clean.metrics["rewards/margin"])) * 0.5 / 2
    signed = torch.cat([slope, -slope])[:, None] * (policy.logprob - reference.logprob)
    torch.testing.assert_close(spoiled.grad[batch.target], signed[batch.target])


def test_composition_gives_the_named_methods():
    batch, policy, reference, _ = case()
    torch.testing.assert_close(
        PreferenceObjective(beta=0.1)(batch, policy, reference).loss,
        DPO(beta=0.1)(batch, policy, reference).loss,
    )
    torch.testing.assert_close(
        PreferenceObjective(beta=0.1, margin=KLMargin(0.5))(batch, policy, reference).loss,
        TDPO(beta=0.1, alpha=0.5)(batch, policy, reference).loss,
    )


def test_parts_multiply_and_add_and_their_needs_are_collected():
    class Term:
        needs = ("policy.entropy",)

        def __call__(self, batch, policy, reference, **_):
            return torch.tensor([1.0, 3.0], dtype=torch.float64)

    batch, policy, reference, weight = case()
    twice = batch.with_columns(weight=weight, other=torch.full_like(weight, 2.0))
    mixed = PreferenceObjective(
        beta=0.3, weight=(ColumnWeight(), ColumnWeight("other")), terms=(Term(),)
    )
    assert set(mixed.needs) == {
        "policy.logprob",
        "reference.logprob",
        "policy.entropy",
        "token.weight",
        "token.other",
    }
    plain = preference_loss(batch, policy, reference, beta=0.3, weight=2 * weight)
    found = mixed(twice, policy, reference)
    torch.testing.assert_close(found.loss, plain.loss + 2.0)
    torch.testing.assert_close(found.metrics["loss"].mean(), found.loss)
    assert mixed.modules(None) is None
    with pytest.raises(InputError, match="needs"):
        _ = PreferenceObjective(weight=lambda *_: 1.0).needs


def test_terms_are_metrics_and_part_of_the_loss():
    batch, policy, reference, _ = case()
    plain = preference_loss(batch, policy, reference, beta=0.1)
    more = add_terms(plain, extra=torch.tensor([1.0, 2.0], dtype=torch.float64))
    torch.testing.assert_close(more.loss, plain.loss + 1.5)
    assert more.metrics["extra"].tolist() == [1.0, 2.0]


def test_a_pair_loss_of_huge_margins_is_finite_and_right():
    margin = torch.tensor([1e4, -1e4, 0.0]).requires_grad_()
    losses = pair_loss(margin)
    losses.sum().backward()
    assert losses.tolist() == pytest.approx([0.0, 1e4, math.log(2)])
    assert margin.grad.tolist() == pytest.approx([0.0, -1.0, -0.5])


def test_implicit_rewards_are_zero_outside_the_target():
    batch, policy, reference, _ = case()
    rewards = implicit_token_rewards(batch, policy, reference, beta=0.2)
    expected = 0.2 * (policy.logprob - reference.logprob)
    torch.testing.assert_close(rewards[batch.target], expected[batch.target])
    assert not rewards[~batch.target].any()


def test_wrong_shapes_and_names_are_errors():
    batch, policy, reference, weight = case()
    with pytest.raises(ShapeError, match="weight"):
        preference_loss(batch, policy, reference, beta=0.1, weight=weight[:2])
    with pytest.raises(UnknownNameError):
        preference_loss(batch, policy, reference, beta=0.1, reduction="median")
    with pytest.raises(InputError, match="reference"):
        preference_loss(batch, policy, None, beta=0.1)
    with pytest.raises(ShapeError):
        blocks(torch.zeros(5), 2)
