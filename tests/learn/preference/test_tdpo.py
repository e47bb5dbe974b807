"""TDPO against its paper: closed forms, its limits, and where its gradient stops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenry.core.batch import TokenBatch
from tokenry.core.divergence import divergence
from tokenry.core.divergences import FORWARD_KL
from tokenry.core.errors import InputError, ShapeError
from tokenry.core.scores import Scores
from tokenry.learn.objective import objective
from tokenry.learn.preference.dpo import DPO
from tokenry.learn.preference.tdpo import TDPO, tdpo_loss

VARIANTS = ("tdpo1", "tdpo2")


def batch_of(ids, prompt=1):
    rows = [[0] * prompt + row for row in ids]
    targets = [[False] * prompt + [True] * len(row) for row in ids]
    return TokenBatch.from_ids(rows, targets, group=[*range(len(ids) // 2)] * 2)


def scores_of(batch, policy, reference):
    """Scores from logits [B, T, V] of both models."""

    def field(values):
        return torch.where(batch.target, values, 0.0)

    def logprob(logits):
        return field(logits.log_softmax(-1).gather(-1, batch.ids[..., None])[..., 0])

    own = Scores(
        batch.ids,
        batch.target,
        logprob=logprob(policy),
        divergence=field(divergence(reference, policy, FORWARD_KL)),
    )
    return own, Scores(batch.ids, batch.target, logprob=logprob(reference))


def random_case(seed=0, pairs=2, length=3, V=4, dtype=torch.float64, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(V, (2 * pairs, length), generator=generator).tolist()
    batch = batch_of(ids)
    shape = (*batch.shape, V)
    logits = [torch.randn(shape, generator=generator, dtype=dtype) * scale for _ in range(2)]
    return batch, *logits


def loss_of(objective, batch, policy, reference):
    return objective(batch, *scores_of(batch, policy, reference)).loss.double()


def two_token_example():
    """V = 2, reference uniform. Chosen: pi = (.5, .5), token 0; rejected: (.8, .2), token 1."""
    batch = batch_of([[0], [1]])
    policy = torch.zeros(2, 2, 2)
    policy[1, 1] = torch.tensor([0.8, 0.2]).log()
    return batch, policy, torch.zeros(2, 2, 2)


@pytest.mark.parametrize("variant", VARIANTS)
def test_at_the_reference_the_loss_is_ln_2_and_all_divergences_vanish(variant):
    batch, policy, _ = random_case()
    result = TDPO(variant=variant)(batch, *scores_of(batch, policy, policy))
    assert float(result.loss) == pytest.approx(math.log(2), abs=1e-7)
    for name in ("kl/chosen", "kl/rejected", "rewards/margin"):
        assert result.metrics[name].abs().max() < 1e-6


def test_worked_example_of_one_token_per_side():
    batch, policy, reference = two_token_example()
    first = TDPO(beta=1.0, variant="tdpo1")(batch, *scores_of(batch, policy, reference))
    second = TDPO(beta=1.0, alpha=0.5)(batch, *scores_of(batch, policy, reference))
    assert float(first.loss) == pytest.approx(math.log(1.5), abs=1e-6)
    assert float(second.loss) == pytest.approx(0.369640, abs=1e-6)
    assert float(first.metrics["kl/chosen"]) == pytest.approx(0.0, abs=1e-7)
    assert float(first.metrics["kl/rejected"]) == pytest.approx(0.223144, abs=1e-6)
    # rewards are beta (R + D): chosen 0, rejected -0.916291 + 0.223144
    assert float(second.metrics["rewards/rejected"]) == pytest.approx(-math.log(2), abs=1e-6)
    assert float(second.metrics["rewards/accuracy"]) == 1.0


def test_is_dpo_in_value_and_gradient_when_alpha_is_zero():
    batch, policy, reference = random_case()
    gradients = []
    for method in (TDPO(alpha=0.0), DPO()):
        leaf = policy.clone().requires_grad_()
        loss = loss_of(method, batch, leaf, reference)
        gradients.append((loss.detach(), *torch.autograd.grad(loss, leaf)))
    torch.testing.assert_close(gradients[0], gradients[1])


def test_tdpo1_is_tdpo2_with_alpha_one_in_value_but_not_in_the_chosen_gradient():
    batch, policy, reference = random_case()
    found = []
    for method in (TDPO(variant="tdpo1"), TDPO(alpha=1.0, variant="tdpo2")):
        leaf = policy.clone().requires_grad_()
        loss = loss_of(method, batch, leaf, reference)
        (gradient,) = torch.autograd.grad(loss, leaf)
        found.append((loss.detach(), gradient))
    torch.testing.assert_close(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1][2:], found[1][1][2:])  # rejected rows
    assert (found[0][1][:2] - found[1][1][:2]).abs().max() > 1e-3


def test_tdpo2_moves_chosen_tokens_like_dpo_up_to_the_sigmoid_factor_and_tdpo1_does_not():
    batch, policy, reference = random_case(pairs=1)

    def chosen_gradient(objective):
        leaf = policy.clone().requires_grad_()
        result = objective(batch, *scores_of(batch, leaf, reference))
        (gradient,) = torch.autograd.grad(result.loss.double(), leaf)
        factor = 1 - torch.exp(-result.loss.detach().double())  # sigmoid(-beta h)
        return gradient[0, 1:] / factor

    dpo = chosen_gradient(DPO())
    torch.testing.assert_close(chosen_gradient(TDPO()), dpo, rtol=1e-4, atol=1e-7)
    assert (chosen_gradient(TDPO(variant="tdpo1")) - dpo).abs().max() > 1e-3


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradient_is_the_finite_difference_with_only_the_chosen_kl_held_fixed(variant):
    """TDPO2 holds D(y_w) at its value; TDPO1 and the rejected side hold nothing."""
    batch, policy, reference = random_case(seed=5)
    objective = TDPO(beta=0.7, alpha=0.9, variant=variant)

    def parts(logits):
        own, frozen = scores_of(batch, logits, reference)
        ratio = (own.logprob - frozen.logprob).sum(-1).chunk(2)
        return *ratio, *own.divergence.sum(-1).chunk(2)

    at_policy = parts(policy)[2]

    def documented(logits):
        chosen, rejected, chosen_kl, rejected_kl = parts(logits)
        if variant == "tdpo1":
            margin = chosen - rejected - (rejected_kl - chosen_kl)
        else:
            margin = chosen - rejected - objective.alpha * (rejected_kl - at_policy)
        return torch.log1p(torch.exp(-objective.beta * margin)).mean()

    leaf = policy.clone().requires_grad_()
    own, frozen = scores_of(batch, leaf, reference)
    ratio = (own.logprob - frozen.logprob).sum(-1).chunk(2)
    kl = own.divergence.sum(-1).chunk(2)
    loss = tdpo_loss(*ratio, *kl, beta=0.7, alpha=0.9, variant=variant).mean()
    (gradient,) = torch.autograd.grad(loss, leaf)
    step = 1e-6
    for place in [(0, 1, 0), (1, 2, 3), (2, 1, 1), (3, 3, 2)]:
        shift = torch.zeros_like(policy)
        shift[place] = step
        numeric = (documented(policy + shift) - documented(policy - shift)) / (2 * step)
        assert float(gradient[place]) == pytest.approx(float(numeric), abs=1e-8)


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.floats(-50, 50))
def test_a_constant_added_to_all_logits_of_a_position_changes_nothing(seed, constant):
    batch, policy, reference = random_case(seed)
    shifted = policy.clone()
    shifted[:, 2] += constant
    torch.testing.assert_close(
        loss_of(TDPO(), batch, shifted, reference), loss_of(TDPO(), batch, policy, reference)
    )


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.floats(0.1, 20))
def test_the_sequence_kl_is_never_negative(seed, scale):
    batch, policy, reference = random_case(seed, scale=scale)
    metrics = TDPO()(batch, *scores_of(batch, policy, reference)).metrics
    assert (metrics["kl/chosen"] >= -1e-6).all()
    assert (metrics["kl/rejected"] >= -1e-6).all()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_of_magnitude_1e4_give_finite_loss_and_gradient(variant, dtype):
    batch, policy, reference = random_case(dtype=torch.float32, scale=1e4)
    leaf = policy.to(dtype).requires_grad_()
    loss = loss_of(TDPO(variant=variant), batch, leaf.float(), reference.to(dtype).float())
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()


def test_a_hopeless_pair_still_has_a_gradient():
    """Margins of -1e4: -log sigmoid is linear there; softplus overflow would give inf or 0."""
    chosen = torch.tensor([-5e4], requires_grad=True)
    zero = torch.zeros(1)
    loss = tdpo_loss(chosen, torch.tensor([5e4]), zero, zero, beta=0.1).mean()
    loss.backward()
    assert float(loss.detach()) == pytest.approx(1e4)
    assert float(chosen.grad) == pytest.approx(-0.1)


def test_an_empty_completion_contributes_nothing():
    batch = TokenBatch.from_ids([[0, 1], [0, 1]], [[False, False], [False, True]], group=[0, 0])
    policy = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0))
    result = TDPO(beta=1.0)(batch, *scores_of(batch, policy, torch.zeros(2, 2, 3)))
    assert float(result.metrics["rewards/chosen"]) == 0.0
    assert torch.isfinite(result.loss)


def test_is_filed_under_its_paper():
    assert objective["tdpo"] is TDPO
    assert {entry.key: entry.paper for entry in objective}["tdpo"] == 0


def test_unknown_variant_is_an_error():
    with pytest.raises(InputError, match="tdpo3"):
        TDPO(variant="tdpo3")  # type: ignore[arg-type]


def test_halves_of_different_pairs_are_refused():
    batch, policy, reference = random_case()
    wrong = TokenBatch(batch.ids, batch.attention, batch.target, torch.tensor([0, 1, 1, 0]))
    with pytest.raises(ShapeError, match="pair"):
        TDPO()(wrong, *scores_of(batch, policy, reference))
