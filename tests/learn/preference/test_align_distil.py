"""AlignDistil against its paper: the teacher, the identity with RLHF, and where gradients flow."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenry.core.batch import TokenBatch
from tokenry.core.divergences import REVERSE_KL
from tokenry.core.errors import InputError, UnknownNameError
from tokenry.core.linear_head import LinearHead
from tokenry.core.scores import Scores
from tokenry.learn.objective import is_on_policy, objective
from tokenry.learn.preference.align_distil import (
    AlignDistil,
    OfflineAlignDistil,
    adaptive_weight,
    contrastive_teacher,
    token_divergence,
)

D = 4


def make_batch(V=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(V, (3, 5), generator=generator).tolist()
    targets = [[False] + [t < n for t in range(4)] for n in (4, 2, 3)]
    return TokenBatch.from_ids(ids, targets, group=[0, 1, 2])


def linear(batch, seed, V=6, scale=1.0, dtype=torch.float64):
    """Scores of a model with its own hidden states and head."""
    generator = torch.Generator().manual_seed(seed)
    hidden = scale * torch.randn(*batch.shape, D, generator=generator, dtype=dtype)
    weight = torch.randn(V, D, generator=generator, dtype=dtype)
    return Scores(
        batch.ids,
        batch.target,
        hidden=hidden * batch.target[..., None],
        head=LinearHead(weight, torch.randn(V, generator=generator, dtype=dtype)),
    )


def from_logits(batch, logits):
    """Scores whose logits are given, [B, T, V], behind an identity head."""
    hidden = logits * batch.target[..., None]
    head = LinearHead(torch.eye(logits.shape[-1], dtype=logits.dtype))
    return Scores(batch.ids, batch.target, hidden=hidden, head=head)


def logprobs(scores):
    """[n, V] at the scored tokens."""
    return scores.head.logits(scores.hidden[scores.mask]).log_softmax(-1)


def one_token(*probabilities):
    batch = TokenBatch.from_ids([[0, 0]])
    return batch, [
        from_logits(batch, torch.tensor(p, dtype=torch.float64).log().expand(1, 2, -1))
        for p in probabilities
    ]


def test_worked_example_of_a_two_word_vocabulary():
    batch, (dpo, reference) = one_token((0.8, 0.2), (0.5, 0.5))
    weight = torch.full(batch.shape, 2.0)
    teacher = contrastive_teacher(dpo, reference, weight, "reference")
    expected = torch.tensor([[0.941176, 0.058824]], dtype=torch.float64)
    torch.testing.assert_close(logprobs(teacher).exp(), expected, rtol=0, atol=1e-6)


def test_weights_zero_and_one_give_the_models_themselves():
    batch = make_batch()
    dpo, other = linear(batch, 1), linear(batch, 2)

    def teacher(weight, against):
        return logprobs(contrastive_teacher(dpo, other, torch.full(batch.shape, weight), against))

    torch.testing.assert_close(teacher(0.0, "reference"), logprobs(other))
    torch.testing.assert_close(teacher(1.0, "reference"), logprobs(dpo))
    torch.testing.assert_close(teacher(0.0, "reverse"), logprobs(dpo))


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), weight=st.floats(0.01, 8))
def test_distillation_is_rlhf_at_every_state(seed, weight):
    """beta2 KL(pi || pi*) = beta2 KL(pi || ref) - E[beta1 log dpo / ref] + beta2 log normaliser."""
    batch = make_batch(seed=seed)
    policy, dpo, reference = (linear(batch, 3 * seed + n) for n in range(3))
    objective = OfflineAlignDistil(beta=0.1, weight=weight, against="reference")
    metrics = objective(batch, policy, reference, dpo=dpo).metrics
    p, d, r = (logprobs(scores) for scores in (policy, dpo, reference))
    beta2 = 0.1 / weight
    penalty = (p.exp() * (p - r)).sum(-1)
    reward = (p.exp() * 0.1 * (d - r)).sum(-1)
    normaliser = (weight * d + (1 - weight) * r).logsumexp(-1)
    per_token = beta2 * penalty - reward + beta2 * normaliser
    rows = batch.target.nonzero()[:, 0]
    means = torch.zeros(3, dtype=torch.float64).index_add(0, rows, per_token)
    torch.testing.assert_close(metrics["loss"], means / batch.target.sum(-1), rtol=1e-6, atol=1e-8)


def test_the_weight_is_c_times_the_l1_distance_plus_a_thousandth():
    batch = make_batch()
    dpo, reverse = linear(batch, 1), linear(batch, 2)
    found = adaptive_weight(dpo, reverse, 15.0)[batch.target]
    distance = (logprobs(dpo).exp() - logprobs(reverse).exp()).abs().sum(-1)
    torch.testing.assert_close(found, 15 * distance + 0.001)
    assert (adaptive_weight(dpo, dpo, 15.0)[batch.target] == 0.001).all()


def test_equal_models_leave_the_dpo_model_as_the_teacher():
    batch = make_batch()
    dpo = linear(batch, 1)
    result = OfflineAlignDistil()(batch, dpo, dpo=dpo, reverse=dpo)
    assert float(result.loss) == pytest.approx(0.0, abs=1e-10)
    assert result.metrics["distil/weight"].tolist() == pytest.approx([0.001] * 3)


def test_loss_is_the_weighted_kl_of_the_whole_vocabulary_averaged_by_text_then_batch():
    batch = make_batch()
    policy, dpo, reverse = (linear(batch, seed) for seed in (1, 2, 3))
    p, d, r = (logprobs(scores) for scores in (policy, dpo, reverse))
    weight = 15 * (d.exp() - r.exp()).abs().sum(-1) + 0.001
    teacher = (d + weight[:, None] * (d - r)).log_softmax(-1)
    tokens = 0.1 / weight * (p.exp() * (p - teacher)).sum(-1)
    sums = torch.zeros(3, dtype=torch.float64).index_add(0, batch.target.nonzero()[:, 0], tokens)
    result = AlignDistil()(batch, policy, dpo=dpo, reverse=reverse)
    torch.testing.assert_close(result.loss, (sums / batch.target.sum(-1)).mean())


def test_a_student_at_the_teacher_has_neither_loss_nor_gradient():
    batch = make_batch()
    dpo, reverse = linear(batch, 1), linear(batch, 2)
    teacher = contrastive_teacher(dpo, reverse, adaptive_weight(dpo, reverse, 15.0))
    hidden = teacher.hidden.clone().requires_grad_()
    result = AlignDistil()(batch, replace(teacher, hidden=hidden), dpo=dpo, reverse=reverse)
    (gradient,) = torch.autograd.grad(result.loss, hidden)
    assert float(result.loss.detach()) == pytest.approx(0.0, abs=1e-9)
    assert gradient.abs().max() < 1e-9


@pytest.mark.parametrize("against", ["reverse", "reference"])
@pytest.mark.parametrize("weight", [None, 2.5])
def test_gradient_reaches_both_places_of_the_student_and_no_frozen_model(against, weight):
    batch = make_batch()
    policy, dpo, other = (linear(batch, seed) for seed in (1, 2, 3))
    objective = OfflineAlignDistil(against=against, weight=weight)
    dpo.hidden.requires_grad_()
    other.hidden.requires_grad_()

    def loss(hidden, matrix):
        student = replace(policy, hidden=hidden, head=LinearHead(matrix, policy.head.bias))
        models = {"dpo": dpo} | ({"reverse": other} if against == "reverse" else {})
        return objective(batch, student, other if against == "reference" else None, **models).loss

    inputs = policy.hidden.requires_grad_(), policy.head.weight.requires_grad_()
    assert torch.autograd.gradcheck(loss, inputs)
    loss(*inputs).backward()
    assert dpo.hidden.grad is None
    assert other.hidden.grad is None


def test_a_constant_added_to_all_logits_of_any_model_changes_nothing():
    batch = make_batch()
    generator = torch.Generator().manual_seed(5)
    logits = [torch.randn(*batch.shape, 6, generator=generator, dtype=torch.float64) for _ in "abc"]

    def loss(shifts):
        moved = [z + shift for z, shift in zip(logits, shifts, strict=True)]
        policy, dpo, reverse = (from_logits(batch, z) for z in moved)
        return AlignDistil()(batch, policy, dpo=dpo, reverse=reverse).loss

    torch.testing.assert_close(loss((7.0, -30.0, 12.0)), loss((0.0, 0.0, 0.0)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_of_magnitude_1e4_give_finite_loss_and_gradient(dtype):
    batch = make_batch()
    policy, dpo, reverse = (linear(batch, seed, scale=1e4, dtype=dtype) for seed in (1, 2, 3))
    hidden = policy.hidden.requires_grad_()
    loss = AlignDistil()(batch, policy, dpo=dpo, reverse=reverse).loss
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert hidden.grad.isfinite().all()


def test_the_teacher_is_not_extrapolated_in_half_precision():
    """w (z_dpo - z_rev) with w = 30: rounding each product to 8 bits would cost whole nats."""
    batch = make_batch()
    dpo = linear(batch, 1, dtype=torch.bfloat16)
    reverse = replace(linear(batch, 1, dtype=torch.bfloat16), head=dpo.head)
    noise = torch.randn(dpo.hidden.shape, generator=torch.Generator().manual_seed(2))
    reverse = replace(reverse, hidden=(dpo.hidden + 0.02 * noise).bfloat16())
    teacher = contrastive_teacher(dpo, reverse, torch.full(batch.shape, 30.0))
    d, r = (
        scores.hidden[batch.target].double() @ scores.head.weight.double().T
        + scores.head.bias.double()
        for scores in (dpo, reverse)
    )
    exact = (d + 30 * (d - r)).log_softmax(-1)
    assert (logprobs(teacher).double() - exact).abs().max() < 0.01


def test_models_without_a_linear_head_are_distilled_through_their_logits():
    batch = make_batch()
    models = [linear(batch, seed) for seed in (1, 2, 3)]
    plain = [Scores(s.ids, s.mask, full_logits=s.head.logits(s.hidden[s.mask])) for s in models]
    plain[0].full_logits.requires_grad_()
    losses = [
        AlignDistil()(batch, policy, dpo=dpo, reverse=reverse).loss
        for policy, dpo, reverse in (models, plain)
    ]
    torch.testing.assert_close(losses[1].detach(), losses[0])
    losses[1].backward()
    assert plain[0].full_logits.grad.abs().sum() > 0


def test_the_on_policy_method_trains_on_the_rollout_as_it_is():
    batch = make_batch()
    objective = AlignDistil()
    assert is_on_policy(objective)
    assert not is_on_policy(OfflineAlignDistil())
    assert objective.prepare(batch, linear(batch, 1), None) is batch
    assert (objective.scale, OfflineAlignDistil().scale) == (15.0, 10.0)


def test_the_product_of_token_teachers_is_not_the_sequence_optimum():
    """Two tokens of two words: the optimum of whole texts also weighs a first token by what its
    state's normaliser still promises, which a teacher per state cannot know."""
    generator = torch.Generator().manual_seed(4)
    base, dpo = torch.randn(2, 3, 2, generator=generator, dtype=torch.float64).log_softmax(-1)
    w = 1.7

    def whole(table):  # log p(first, second); the states: start, after 0, after 1
        return (table[0][:, None] + table[1:]).flatten()

    optimum = (whole(base) + w * (whole(dpo) - whole(base))).log_softmax(0)
    unnormalised = w * dpo + (1 - w) * base
    product = whole(unnormalised.log_softmax(-1))
    promise = unnormalised.logsumexp(-1)[1:].repeat_interleave(2)
    torch.testing.assert_close((product + promise).log_softmax(0), optimum)
    assert (product - optimum).abs().max() > 1e-2


def test_wrong_inputs_say_what_is_wrong():
    batch = make_batch()
    policy, dpo = linear(batch, 1), linear(batch, 2)
    with pytest.raises(InputError, match="reverse"):
        AlignDistil()(batch, policy, dpo=dpo)
    with pytest.raises(InputError, match="reference"):
        AlignDistil(against="reference")(batch, policy, dpo=dpo, reverse=dpo)
    with pytest.raises(UnknownNameError, match="reverse"):
        AlignDistil(against="base")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="weight"):
        AlignDistil(weight=0.0)
    with pytest.raises(InputError, match="hidden"):
        token_divergence(Scores(batch.ids, batch.target), dpo, REVERSE_KL)


def test_are_filed_under_their_paper():
    assert objective["align-distil"] is AlignDistil
    assert objective["align-distil-offline"] is OfflineAlignDistil
    papers = {entry.key: entry.paper for entry in objective}
    assert papers["align-distil"] == papers["align-distil-offline"] == 118
