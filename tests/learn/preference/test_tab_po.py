"""TAB-PO against its paper: worked example, normalised weights, and where the barrier acts."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError
from tokenry.core.scores import Scores
from tokenry.learn.data.precompute import PrecomputeContext
from tokenry.learn.objective import objective
from tokenry.learn.preference.tab_po import (
    TABPO,
    BarrierTerm,
    FieldWeight,
    difference_weights,
    field_weights,
)
from tokenry.learn.preference.weighted import PreferenceObjective

LENGTHS = (3, 2, 4, 1)  # completion tokens of chosen 0, 1 and rejected 0, 1


def case(seed=0, scale=1.0, dtype=torch.float64):
    """A batch of two pairs with token weights, and log-probabilities of policy and reference."""
    generator = torch.Generator().manual_seed(seed)
    rows = [[5, 5] + [1] * length for length in LENGTHS]
    target = [[False, False] + [True] * length for length in LENGTHS]
    batch = TokenBatch.from_ids(rows, target, group=[0, 1, 0, 1])
    policy, reference = (
        -torch.rand(batch.shape, generator=generator, dtype=dtype) * scale * 1.5 for _ in range(2)
    )
    weight = torch.rand(batch.shape, generator=generator, dtype=torch.float64) + 0.1
    return batch.with_columns(weight=weight), policy, reference


def run(objective, batch, policy, reference):
    return objective(
        batch,
        Scores(batch.ids, batch.target, logprob=policy),
        Scores(batch.ids, batch.target, logprob=reference),
    )


def gradient_of(objective, batch, policy, reference):
    leaf = policy.clone().requires_grad_()
    loss = run(objective, batch, leaf, reference).loss
    return loss.detach(), *torch.autograd.grad(loss, leaf)


def worked_example():
    batch = TokenBatch.from_ids([[0, 1, 1], [0, 1, 2]], group=[0, 0])
    weight = torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]])
    policy = torch.tensor([[0.0, -0.1, -1.0], [0.0, -0.1, -2.0]])
    reference = torch.tensor([[0.0, -0.2, -1.2], [0.0, -0.1, -1.5]])
    return batch.with_columns(weight=weight), policy, reference


def test_worked_example():
    result = run(TABPO(), *worked_example())
    assert float(result.metrics["rewards/margin"]) == pytest.approx(0.5 * 0.5)
    assert float(result.metrics["barrier"]) == pytest.approx(0.5)
    assert float(result.loss) == pytest.approx(1.075939, abs=1e-6)
    assert float(run(TABPO(barrier=0.0), *worked_example()).loss) == pytest.approx(
        0.575939, abs=1e-6
    )


def test_is_dpo_on_mean_log_probabilities_when_weights_are_one_and_there_is_no_barrier():
    batch, policy, reference = case()
    batch = batch.with_columns(weight=torch.ones(batch.shape))
    ratio = torch.where(batch.target, policy - reference, 0.0).sum(-1) / batch.target.sum(-1)
    expected = -torch.nn.functional.logsigmoid(0.5 * (ratio[:2] - ratio[2:])).mean()
    torch.testing.assert_close(run(TABPO(barrier=0.0), batch, policy, reference).loss, expected)


@settings(max_examples=20)
@given(st.integers(0, 1000), st.lists(st.floats(1e-3, 1e3), min_size=4, max_size=4))
def test_scaling_a_completions_weights_changes_nothing(seed, factors):
    batch, policy, reference = case(seed)
    scaled = batch.column("weight") * torch.tensor(factors, dtype=torch.float64)[:, None]
    torch.testing.assert_close(
        gradient_of(TABPO(), batch.with_columns(weight=scaled), policy, reference),
        gradient_of(TABPO(), batch, policy, reference),
    )


def test_normalised_weights_have_mean_one_over_the_completion_and_zero_outside():
    batch, _, _ = case()
    weight = FieldWeight()(batch, None, None)
    torch.testing.assert_close(weight.sum(-1), batch.target.sum(-1).double())
    assert (weight[~batch.target] == 0).all()
    proportions = batch.column("weight")[0, 2:5]
    torch.testing.assert_close(weight[0, 2:5], proportions / proportions.mean())


def test_weights_of_zero_or_no_tokens_at_all_stay_finite():
    batch = TokenBatch.from_ids(
        [[0, 1], [0, 1]], [[False, False], [False, True]], group=[0, 0]
    ).with_columns(weight=torch.zeros(2, 2))
    policy = torch.tensor([[0.0, 0.0], [0.0, -2.0]])
    result = run(TABPO(), batch, policy, torch.zeros(2, 2))
    assert float(result.loss) == pytest.approx(math.log(2))


def test_a_chosen_completion_above_tau_has_neither_barrier_nor_its_gradient():
    batch, policy, reference = case()
    sure = policy.clone()
    sure[:2] = math.log(0.66) + 1e-3
    torch.testing.assert_close(
        gradient_of(TABPO(), batch, sure, reference),
        gradient_of(TABPO(barrier=0.0), batch, sure, reference),
    )


def test_the_barrier_acts_on_improbable_chosen_tokens_alone():
    batch, policy, _ = case(1)
    leaf = policy.clone().requires_grad_()
    term = BarrierTerm(weight=FieldWeight())(
        batch, Scores(batch.ids, batch.target, logprob=leaf), None
    )
    (gradient,) = torch.autograd.grad(term.sum(), leaf)
    active = batch.target & (policy < math.log(0.66))
    active[2:] = False
    assert 0 < active.sum() < 5
    assert (gradient[~active] == 0).all()
    weight = torch.where(active, FieldWeight()(batch, None, None), 0.0)
    expected = -0.5 * weight / weight.sum(-1, keepdim=True).clamp_min(1.0)
    torch.testing.assert_close(gradient, expected)


def test_a_barely_active_gate_is_damped_and_not_amplified():
    """One active token of normalised weight 0.2: its share is 0.2 and not 1."""
    batch = TokenBatch.from_ids([[0, 1, 1], [0, 1, 1]], group=[0, 0])
    batch = batch.with_columns(weight=torch.tensor([[0.0, 0.1, 0.9], [0.0, 1.0, 1.0]]))
    policy = torch.tensor([[0.0, -3.0, -0.01], [0.0, -1.0, -1.0]])
    scores = Scores(batch.ids, batch.target, logprob=policy)
    assert float(BarrierTerm(weight=FieldWeight())(batch, scores, None)) == pytest.approx(
        0.5 * 0.2 * 3.0
    )


def test_gradient_is_the_finite_difference_with_the_gate_held():
    batch, policy, reference = case(2)
    own = torch.where(batch.target, batch.column("weight"), 0.0)
    weight = own * batch.target.sum(-1, keepdim=True) / own.sum(-1, keepdim=True)
    gate = batch.target & (policy < math.log(0.66))

    def documented(logprob):
        score = (weight * torch.where(batch.target, logprob - reference, 0.0)).sum(-1)
        score = score / batch.target.sum(-1)
        mass = (weight * gate).sum(-1).clamp_min(1.0)
        barrier = (weight * gate * -logprob).sum(-1) / mass
        preference = torch.log1p(torch.exp(-0.5 * (score[:2] - score[2:])))
        return (preference + 0.5 * barrier[:2]).mean()

    loss, gradient = gradient_of(TABPO(), batch, policy, reference)
    torch.testing.assert_close(loss, documented(policy))
    step = 1e-6
    for place in batch.target.nonzero().tolist():
        shift = torch.zeros_like(policy)
        shift[tuple(place)] = step
        numeric = (documented(policy + shift) - documented(policy - shift)) / (2 * step)
        assert float(gradient[tuple(place)]) == pytest.approx(float(numeric), abs=1e-8)


@settings(max_examples=15)
@given(st.integers(0, 1000))
def test_at_the_reference_the_preference_term_is_ln_2_whatever_the_weights(seed):
    batch, policy, _ = case(seed)
    result = run(TABPO(), batch, policy, policy)
    torch.testing.assert_close(
        result.loss - result.metrics["barrier"].mean(),
        torch.tensor(math.log(2), dtype=torch.float64),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_log_probabilities_of_minus_1e4_and_garbage_outside_the_target_stay_finite(dtype):
    batch, policy, reference = case(scale=1e4, dtype=dtype)
    clean = run(TABPO(), batch, policy, reference).loss
    weight = torch.where(batch.target, batch.column("weight"), math.nan)
    leaf = torch.where(batch.target, policy, math.nan).requires_grad_()
    loss = run(TABPO(), batch.with_columns(weight=weight), leaf, reference).loss
    loss.backward()
    torch.testing.assert_close(loss, clean)
    assert loss.isfinite()
    assert leaf.grad.isfinite().all()


def test_the_weight_of_a_field_reaches_every_token_that_overlaps_its_value():
    text = '{"Code": "A1", "Span": "A1 pain"}'
    pieces = ['{"Code": "', "A", "1", '", "Span": "', "A1 ", 'pain"', "}", ""]
    edges = [0]
    for piece in pieces:
        edges.append(edges[-1] + len(piece))
    offsets = list(itertools.pairwise(edges))
    values = {"Code": ["A1"], "Sub-code": ["pain", ""], "Note": ["Span"]}
    found = field_weights(text, offsets, values, {"Code": 1.1, "Sub-code": 1.2})
    assert found == [1.0, 1.1, 1.1, 1.0, 1.1, 1.2, 1.0, 1.0]
    nested = {"Code": ["A1 pain"], "Sub-code": ["A1"]}
    overlapping = field_weights(text, offsets, nested, {"Code": 1.1, "Sub-code": 1.2})
    assert overlapping == [1.0, 1.2, 1.2, 1.0, 1.2, 1.1, 1.0, 1.0]


def test_tokens_differ_place_by_place_without_alignment():
    assert difference_weights([1, 2, 3], [1, 9, 3], 1.2) == [1.0, 1.2, 1.0]
    assert difference_weights([1, 2, 3], [2, 3], 1.5) == [1.5, 1.5, 1.0]  # up to the shorter end
    assert difference_weights([], [2, 3], 1.5) == []
    assert difference_weights([2, 3], [2, 3, 4], 1.5) == [1.0, 1.0]


class CharacterTokenizer:
    """One token for each character."""

    def __call__(self, text, add_special_tokens=False, return_offsets_mapping=False):
        return {
            "input_ids": [ord(c) for c in text],
            "offset_mapping": [(i, i + 1) for i in range(len(text))],
        }


def test_precompute_weighs_fields_and_differences_of_both_sides():
    end = [0]  # covers no character
    row = {
        "chosen": "x:ab",
        "rejected": "x:ac",
        "chosen_ids": [*map(ord, "x:ab"), *end],
        "rejected_ids": [*map(ord, "x:ac"), *end],
    }
    context = PrecomputeContext(CharacterTokenizer())
    apart = {"chosen_fields": {"Code": ["ab"]}, "rejected_fields": {"Code": ["ac"]}}
    (found,) = TABPO().precompute([row | apart], context)
    assert found["chosen_weight"] == pytest.approx([1.0, 1.0, 1.1, 1.1 * 1.2, 1.0])
    assert found["rejected_weight"] == pytest.approx([1.0, 1.0, 1.1, 1.1 * 1.2, 1.0])
    (found,) = TABPO().precompute([row | {"fields": {"Code": ["ab"]}}], context)
    assert found["rejected_weight"] == pytest.approx([1.0, 1.0, 1.0, 1.2, 1.0])
    own = {"chosen_weight": [3.0] * 5}
    (found,) = TABPO().precompute([row | own], context)
    assert found["chosen_weight"] == [3.0] * 5
    assert found["rejected_weight"] == [1.0, 1.0, 1.0, 1.2, 1.0]


def test_its_parts_make_it_up_in_free_composition():
    batch, policy, reference = case()
    weight = FieldWeight()
    composed = PreferenceObjective(
        beta=0.5, weight=weight, reduction="mean", terms=(BarrierTerm(weight=weight),)
    )
    assert "token.weight" in composed.needs
    torch.testing.assert_close(
        run(composed, batch, policy, reference).loss, run(TABPO(), batch, policy, reference).loss
    )
    assert BarrierTerm().needs == ("policy.logprob",)


def test_is_filed_under_its_paper_and_refuses_what_it_cannot_do():
    assert objective["tab-po"] is TABPO
    assert {entry.key: entry.paper for entry in objective}["tab-po"] == 123
    with pytest.raises(InputError, match="66"):
        TABPO(tau=66.0)
