"""The contract of the role `objective`: every registered objective is put through all of it.

Objectives of pairs get a preference batch (chosen rows, then rejected rows); others as many blocks
of rows as they have completions; on-policy ones the batch that their own `prepare` makes of a
rollout. Scores are made by hand from random logits, so that no model is involved: hidden states are
the logits themselves, behind an identity head.
"""

from dataclasses import fields, replace
from functools import cache

import pytest
import torch

from role_cases import cases
from tokenry.core.batch import TokenBatch
from tokenry.core.divergence import divergence
from tokenry.core.linear_head import LinearHead
from tokenry.core.scores import Scores
from tokenry.learn.objective import (
    DATA,
    Example,
    Objective,
    check_needs,
    count_units,
    is_on_policy,
)
from tokenry.learn.objective import objective as objectives

V, PAIRS = 5, 3


def make_batch(generator, extra=0, side="right", completions=2):
    """A batch with prompts and completions of different lengths, a block of rows for each side."""
    rows, targets = [], []
    for row in range(completions * PAIRS):
        prompt, completion = 1 + row % 2, 2 + (row * 5) % 4
        rows.append(torch.randint(V, (prompt + completion,), generator=generator).tolist())
        targets.append([False] * prompt + [True] * completion)
    batch = TokenBatch.from_ids(
        rows, targets, group=[*range(PAIRS)] * completions, padding_side=side, pad_id=0
    )
    if extra:
        filler = TokenBatch.from_ids([[0] * (batch.shape[1] + extra)], group=[0])
        batch = batch.concat(filler, side=side).select(slice(0, completions * PAIRS))
    return batch


def by_column(batch, generator, *shape):
    """Random numbers [B, T, ...] that depend on a token's place in its own row, not its padding."""
    table = torch.randn(len(batch.ids), 32, *shape, generator=generator, dtype=torch.float64)
    place = (batch.attention.cumsum(-1) - 1).clamp_min(0)
    return table[torch.arange(len(batch.ids))[:, None], place]


def make_logits(batch, generator, dtype=torch.float64, scale=1.0):
    return (by_column(batch, generator, V) * scale).to(dtype)


def with_columns(example, batch, seed=11):
    """The columns that the objective needs of the data."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for need in example.objective.needs:
        source, _, name = need.partition(".")
        if source not in DATA:
            continue
        if source == "token":
            values = by_column(batch, generator).sigmoid() * batch.target
        else:
            values = torch.rand(len(batch.ids), generator=generator, dtype=torch.float64)
        make = example.columns.get(name)
        made[name] = values if make is None else make(batch, values)
    return batch.with_columns(**made)


def make_scores(objective, batch, logits_of, needs=None):
    """Exactly what the needs name, from each source's logits; every other field is None."""

    def field(values):
        return torch.where(batch.target, values, 0.0)

    def values_of(source, quantity):
        logits = logits_of[source]
        logp = logits.log_softmax(-1)
        states = logits * batch.target[..., None]
        return {
            "logprob": lambda: field(logp.gather(-1, batch.ids[..., None])[..., 0]),
            "entropy": lambda: field(-(logp.exp() * logp).sum(-1)),
            "divergence": lambda: field(
                divergence(logits_of["reference"], logits, objective.divergence)
            ),
            "hidden": lambda: states,
            "hidden_states": lambda: (states * 0.5, states),
        }[quantity]()

    found = {"policy": {}, "reference": {}}
    for need in objective.needs if needs is None else needs:
        source, _, quantity = need.partition(".")
        if source not in DATA:
            found.setdefault(source, {})[quantity] = values_of(source, quantity)

    def scores(source):
        made = found[source]
        head = LinearHead(torch.eye(V, dtype=logits_of[source].dtype)) if "hidden" in made else None
        return Scores(batch.ids, batch.target, head=head, **made)

    policy, reference = scores("policy"), scores("reference") if found["reference"] else None
    others = {s: scores(s) for s in found if s not in ("policy", "reference")}
    torch.manual_seed(5)
    modules = objective.modules(tiny_model())
    if modules is not None:
        others["modules"] = modules.double().eval()
    return policy, reference, others


@cache
def tiny_model():
    """A model whose hidden size and vocabulary are V, for parts that are made from one."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=V,
        hidden_size=V,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=4,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=1,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight.copy_(torch.eye(V))  # as the hidden states of these tests want it
    return model


class Case:
    """A batch and the logits of every model that the objective asks for."""

    def __init__(self, example, extra=0, side="right", dtype=torch.float64, scale=1.0, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.objective = objective = example.objective
        self.batch = make_batch(generator, extra, side, len(objective.completions))
        needs = (*objective.needs, *objective.rollout_needs)
        names = {need.partition(".")[0] for need in needs} - set(DATA)
        self.logits = {
            name: make_logits(self.batch, generator, dtype, scale)
            for name in ("policy", "reference", *sorted(names - {"policy", "reference"}))
        }
        if is_on_policy(objective):
            self.prepare(example)
        else:
            self.batch = with_columns(example, self.batch)

    def prepare(self, example):
        """A rollout: sampled from a policy that has moved a little since."""
        generator = torch.Generator().manual_seed(7)
        count = self.objective.num_rewards
        shape = (len(self.batch.ids),) if count <= 1 else (len(self.batch.ids), count)
        reward = torch.randn(shape, generator=generator, dtype=torch.float64)
        old = {**self.logits, "policy": self.logits["policy"] * 0.95}
        made = {name: make(self.batch, reward) for name, make in example.columns.items()}
        batch = self.batch.with_columns(**{"reward": reward, **made})
        policy, reference, others = make_scores(
            self.objective, batch, old, self.objective.rollout_needs
        )
        self.batch = self.objective.prepare(batch, policy, reference, **others)

    def scores(self, policy=None, batch=None, logits=None):
        logits = self.logits if logits is None else logits
        policy = logits["policy"] if policy is None else policy
        return make_scores(self.objective, batch or self.batch, {**logits, "policy": policy})

    def loss(self, policy=None, batch=None, logits=None):
        own, reference, others = self.scores(policy, batch, logits)
        return self.objective(batch or self.batch, own, reference, **others)


@pytest.fixture(params=cases(objectives, lambda kind: Example(kind())))
def example(request):
    return request.param()


@pytest.fixture
def objective(example):
    return example.objective


@pytest.fixture
def case(example):
    return Case(example)


def test_follows_the_protocol(objective):
    assert isinstance(objective, Objective)
    assert check_needs(objective)
    assert objective.unit in ("pair", "row", "token")


def test_hyperparameters_have_defaults_and_are_frozen(objective):
    for field in fields(objective):
        with pytest.raises(AttributeError):
            setattr(objective, field.name, 1)
    assert replace(objective) == objective


def test_loss_metrics_and_gradients_are_finite_and_metrics_carry_no_gradient(objective, case):
    policy = case.logits["policy"].clone().requires_grad_()
    result = case.loss(policy)
    result.loss.backward()
    assert result.loss.ndim == 0
    assert torch.isfinite(result.loss)
    assert policy.grad is not None
    assert torch.isfinite(policy.grad).all()
    assert policy.grad.abs().sum() > 0
    for name, value in result.metrics.items():
        assert not value.requires_grad, name
        assert torch.isfinite(value).all(), name
        assert value.ndim == 0 or len(value) == count_units(objective.unit, case.batch), name


def test_a_metric_named_loss_averages_to_the_loss(case):
    result = case.loss()
    if "loss" in result.metrics:
        torch.testing.assert_close(result.metrics["loss"].mean(), result.loss.detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_of_magnitude_1e4_do_not_overflow(example, dtype):
    case = Case(example, dtype=dtype, scale=1e4)
    logits = {name: value.float() for name, value in case.logits.items()}
    policy = logits["policy"].clone().requires_grad_()
    result = case.loss(policy, logits=logits)
    result.loss.backward()
    assert torch.isfinite(result.loss)
    assert policy.grad is not None
    assert torch.isfinite(policy.grad).all()


def test_bfloat16_scores_give_a_float32_loss(case):
    names = ("logprob", "entropy", "divergence")

    def halved(view):
        if not isinstance(view, Scores):
            return view
        made = {n: getattr(view, n).bfloat16() for n in names if getattr(view, n) is not None}
        return replace(view, **made)

    own, reference, others = case.scores()
    low = {name: halved(view) for name, view in others.items()}
    result = case.objective(case.batch, halved(own), halved(reference), **low)
    whole = case.objective(case.batch, own, reference, **others).loss.double()
    assert result.loss.dtype in (torch.float32, torch.float64)
    torch.testing.assert_close(result.loss.double(), whole, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("extra", [0, 4])
def test_padding_changes_nothing(example, side, extra):
    def value(*arguments):
        return Case(example, *arguments, seed=3).loss().loss

    torch.testing.assert_close(value(extra, side), value(0, "right"))


def test_the_order_of_pairs_changes_nothing(case):
    order = torch.tensor([2, 0, 1])
    rows = torch.cat([order + PAIRS * block for block in range(len(case.batch.ids) // PAIRS)])
    logits = {name: value[rows] for name, value in case.logits.items()}
    shuffled = case.loss(batch=case.batch.select(rows), logits=logits)
    torch.testing.assert_close(shuffled.loss, case.loss().loss)


def test_a_batch_is_the_mean_of_its_parts_unless_it_says_otherwise(objective, case):
    if not objective.separable:
        pytest.skip("couples the rows of a batch, as it says")
    batch, place = case.batch, torch.arange(len(case.batch.ids)) % PAIRS
    total, units, sums = 0.0, 0, {}
    for rows in (place == 0, place > 0):
        part = batch.select(rows)
        logits = {name: value[rows] for name, value in case.logits.items()}
        count, result = count_units(objective.unit, part), case.loss(batch=part, logits=logits)
        total, units = total + count * result.loss, units + count
        sums |= {name: sums.get(name, 0) + value for name, value in result.totals(count).items()}
    whole = case.loss()
    torch.testing.assert_close(total / units, whole.loss)
    for name, (value, count) in whole.totals(units).items():
        mean = sums[name][0] / sums[name][1].clamp_min(1)
        torch.testing.assert_close(mean, value / count.clamp_min(1), msg=f"metric {name}")


def test_tokens_outside_the_target_do_not_matter(case):
    generator = torch.Generator().manual_seed(1)
    outside = ~case.batch.target
    ids = torch.where(outside, (case.batch.ids + 1) % V, case.batch.ids)
    logits = {}
    for name, value in case.logits.items():
        noise = torch.randn(value.shape, generator=generator, dtype=value.dtype) * 100
        logits[name] = torch.where(outside[..., None], noise, value)
    changed = case.loss(batch=replace(case.batch, ids=ids), logits=logits)
    torch.testing.assert_close(changed.loss, case.loss().loss)


def test_even_garbage_in_the_scores_outside_the_target_does_not_matter(case):
    batch = case.batch
    own, reference, others = case.scores()
    spoiled = {
        name: torch.where(batch.target, getattr(own, name), torch.nan)
        for name in ("logprob", "entropy", "divergence")
        if getattr(own, name) is not None
    }
    torch.testing.assert_close(
        case.objective(batch, replace(own, **spoiled), reference, **others).loss,
        case.objective(batch, own, reference, **others).loss,
    )


def test_value_when_policy_and_reference_agree(objective, case):
    if objective.at_reference is None:
        pytest.skip("no documented value")
    same = {**case.logits, "policy": case.logits["reference"]}
    assert case.loss(logits=same).loss.item() == pytest.approx(objective.at_reference, abs=1e-6)


def test_gradient_matches_finite_differences_that_hold_only_what_it_says_it_stops(case):
    """In float64, along random directions."""
    if case.objective.detaches:
        pytest.skip(f"held constant inside, with a test of its own: {case.objective.detaches}")
    objective, batch, policy = case.objective, case.batch, case.logits["policy"]
    generator = torch.Generator().manual_seed(9)
    held = case.scores()[0]
    stops = objective.stopped(batch)

    def documented(logits):
        own, reference, others = case.scores(logits)
        fixed = {}
        for need, mask in stops.items():
            name = need.removeprefix("policy.")
            fixed[name] = torch.where(mask, getattr(held, name), getattr(own, name))
        return objective(batch, replace(own, **fixed), reference, **others).loss

    leaf = policy.clone().requires_grad_()
    case.loss(leaf).loss.backward()
    assert leaf.grad is not None
    step = 1e-5
    for _ in range(4):
        direction = torch.randn(policy.shape, generator=generator, dtype=policy.dtype)
        numeric = (
            documented(policy + step * direction) - documented(policy - step * direction)
        ) / (2 * step)
        torch.testing.assert_close((leaf.grad * direction).sum(), numeric, rtol=1e-6, atol=1e-9)


def test_a_missing_reference_or_field_is_an_error_that_speaks(objective, case):
    from tokenry.core.errors import TokenryError

    _, reference, others = case.scores()
    with pytest.raises(TokenryError):
        objective(case.batch, Scores(case.batch.ids, case.batch.target), reference, **others)
