"""The contract of the role `objective`: every registered objective is put through all of it.

Objectives of pairs get a preference batch (chosen rows, then rejected rows); the others a batch of
single rows. Scores are made by hand from random logits, so that no model is involved.
"""

from dataclasses import fields, replace

import pytest
import torch

from tokenry.core.batch import TokenBatch
from tokenry.core.divergence import FORWARD_KL, divergence
from tokenry.core.registry import objective as objectives
from tokenry.core.scores import Scores
from tokenry.learn.objective import NEEDS, Objective, check_needs, count_units

KEYS = objectives.names()
V, PAIRS, LENGTH = 5, 3, 7


def make_batch(generator, extra=0, side="right"):
    """A preference batch with prompts and completions of different lengths."""
    rows, targets = [], []
    for row in range(2 * PAIRS):
        prompt, completion = 1 + row % 2, 2 + (row * 5) % 4
        rows.append(torch.randint(V, (prompt + completion,), generator=generator).tolist())
        targets.append([False] * prompt + [True] * completion)
    batch = TokenBatch.from_ids(
        rows, targets, group=[*range(PAIRS)] * 2, padding_side=side, pad_id=0
    )
    if extra:
        filler = TokenBatch.from_ids([[0] * (batch.shape[1] + extra)], group=[0])
        batch = batch.concat(filler, side=side).select(slice(0, 2 * PAIRS))
    return batch


def make_logits(batch, generator, dtype=torch.float64, scale=1.0):
    """Logits [B, T, V] that depend on a token's place in its own row, not on its padding."""
    table = torch.randn(len(batch.ids), 32, V, generator=generator, dtype=torch.float64) * scale
    place = (batch.attention.cumsum(-1) - 1).clamp_min(0)
    return table.gather(1, place[..., None].expand(-1, -1, V)).to(dtype)


def make_scores(goal, batch, policy_logits, reference_logits):
    """Exactly what the objective's needs name; every other field is None."""

    def field(values):
        return torch.where(batch.target, values, 0.0)

    def logprob(logits):
        return field(logits.log_softmax(-1).gather(-1, batch.ids[..., None])[..., 0])

    logp = policy_logits.log_softmax(-1)
    kind = getattr(goal, "divergence", FORWARD_KL)
    possible = {
        "policy.logprob": lambda: logprob(policy_logits),
        "policy.entropy": lambda: field(-(logp.exp() * logp).sum(-1)),
        "policy.divergence": lambda: field(divergence(reference_logits, policy_logits, kind)),
        "reference.logprob": lambda: logprob(reference_logits),
    }
    made = {need: possible[need]() for need in goal.needs}

    def of(model):
        named = {k.split(".")[1]: v for k, v in made.items() if k.startswith(model)}
        return Scores(batch.ids, batch.target, **named)

    return of("policy"), of("reference") if "reference.logprob" in made else None


def evaluate(goal, batch, policy_logits, reference_logits):
    return goal(batch, *make_scores(goal, batch, policy_logits, reference_logits))


@pytest.fixture(params=KEYS)
def goal(request):
    return objectives[request.param]()


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def case(generator):
    batch = make_batch(generator)
    return batch, make_logits(batch, generator), make_logits(batch, generator)


def test_follows_the_protocol(goal):
    assert isinstance(goal, Objective)
    assert set(check_needs(goal)) <= set(NEEDS)
    assert goal.unit in ("pair", "row", "token")


def test_hyperparameters_have_defaults_and_are_frozen(goal):
    first = fields(goal)[0].name
    with pytest.raises(AttributeError):
        setattr(goal, first, 1)
    assert replace(goal) == goal


def test_loss_metrics_and_gradients_are_finite_and_metrics_carry_no_gradient(goal, case):
    batch, policy, reference = case
    policy = policy.requires_grad_()
    result = evaluate(goal, batch, policy, reference)
    result.loss.backward()
    assert result.loss.ndim == 0
    assert torch.isfinite(result.loss)
    assert policy.grad is not None
    assert torch.isfinite(policy.grad).all()
    assert policy.grad.abs().sum() > 0
    for name, value in result.metrics.items():
        assert not value.requires_grad, name
        assert torch.isfinite(value).all(), name
        assert value.ndim == 0 or len(value) == count_units(goal.unit, batch), name


def test_a_metric_named_loss_averages_to_the_loss(goal, case):
    result = evaluate(goal, *case)
    if "loss" in result.metrics:
        torch.testing.assert_close(result.metrics["loss"].mean(), result.loss.detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_of_magnitude_1e4_do_not_overflow(goal, generator, dtype):
    batch = make_batch(generator)
    policy = make_logits(batch, generator, dtype, scale=1e4).float().requires_grad_()
    result = evaluate(goal, batch, policy, make_logits(batch, generator, dtype, 1e4).float())
    result.loss.backward()
    assert torch.isfinite(result.loss)
    assert policy.grad is not None
    assert torch.isfinite(policy.grad).all()


def test_bfloat16_scores_give_a_float32_loss(goal, case):
    batch, policy, reference = case
    scores = make_scores(goal, batch, policy, reference)

    def halved(view):
        fields = {
            name: getattr(view, name).bfloat16()
            for name in ("logprob", "entropy", "divergence")
            if getattr(view, name) is not None
        }
        return replace(view, **fields)

    low = [None if view is None else halved(view) for view in scores]
    result = goal(batch, *low)
    assert result.loss.dtype == torch.float32
    torch.testing.assert_close(
        result.loss.double(), goal(batch, *scores).loss.double(), rtol=0.05, atol=0.05
    )


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("extra", [0, 4])
def test_padding_changes_nothing(goal, side, extra):
    def run(extra, side):
        generator = torch.Generator().manual_seed(3)
        batch = make_batch(generator, extra, side)
        return evaluate(
            goal, batch, make_logits(batch, generator), make_logits(batch, generator)
        ).loss

    torch.testing.assert_close(run(extra, side), run(0, "right"))


def test_the_order_of_pairs_changes_nothing(goal, case):
    batch, policy, reference = case
    order = torch.tensor([2, 0, 1])
    rows = torch.cat([order, order + PAIRS])
    shuffled = evaluate(goal, batch.select(rows), policy[rows], reference[rows])
    torch.testing.assert_close(shuffled.loss, evaluate(goal, *case).loss)


def test_tokens_outside_the_target_do_not_matter(goal, case, generator):
    batch, policy, reference = case
    outside = ~batch.target
    noise = torch.randn(policy.shape, generator=generator, dtype=policy.dtype) * 100
    ids = torch.where(outside, (batch.ids + 1) % V, batch.ids)
    changed = evaluate(
        goal,
        replace(batch, ids=ids),
        torch.where(outside[..., None], noise, policy),
        torch.where(outside[..., None], -noise, reference),
    )
    torch.testing.assert_close(changed.loss, evaluate(goal, *case).loss)


def test_even_garbage_in_the_scores_outside_the_target_does_not_matter(goal, case):
    batch, policy, reference = case
    own, frozen = make_scores(goal, batch, policy, reference)
    spoiled = replace(
        own,
        **{
            name: torch.where(batch.target, getattr(own, name), torch.nan)
            for name in ("logprob", "entropy", "divergence")
            if getattr(own, name) is not None
        },
    )
    torch.testing.assert_close(goal(batch, spoiled, frozen).loss, goal(batch, own, frozen).loss)


def test_value_when_policy_and_reference_agree(goal, case):
    if not hasattr(goal, "at_reference"):
        pytest.skip("no documented value")
    batch, policy, _ = case
    assert float(evaluate(goal, batch, policy, policy).loss) == pytest.approx(
        goal.at_reference, abs=1e-6
    )


def test_gradient_matches_finite_differences_that_hold_only_what_it_says_it_stops(goal, case):
    """In float64, along random directions."""
    batch, policy, reference = case
    generator = torch.Generator().manual_seed(9)
    held = make_scores(goal, batch, policy, reference)[0]
    stops = goal.stopped(batch) if hasattr(goal, "stopped") else {}

    def documented(logits):
        own, frozen = make_scores(goal, batch, logits, reference)
        fixed = {}
        for need, mask in stops.items():
            name = need.removeprefix("policy.")
            fixed[name] = torch.where(mask, getattr(held, name), getattr(own, name))
        return goal(batch, replace(own, **fixed), frozen).loss

    leaf = policy.clone().requires_grad_()
    evaluate(goal, batch, leaf, reference).loss.backward()
    assert leaf.grad is not None
    step = 1e-5
    for _ in range(4):
        direction = torch.randn(policy.shape, generator=generator, dtype=policy.dtype)
        numeric = (
            documented(policy + step * direction) - documented(policy - step * direction)
        ) / (2 * step)
        torch.testing.assert_close((leaf.grad * direction).sum(), numeric, rtol=1e-6, atol=1e-9)


def test_a_missing_reference_or_field_is_an_error_that_speaks(goal, case):
    from tokenry.core.errors import TokenryError

    batch, policy, reference = case
    _, frozen = make_scores(goal, batch, policy, reference)
    with pytest.raises(TokenryError):
        goal(batch, Scores(batch.ids, batch.target), frozen)
