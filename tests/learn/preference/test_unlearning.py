"""Adaptive unlearning: values and slopes of its terms, and which tokens they reach."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenry.core.batch import TokenBatch
from tokenry.core.divergence import divergence
from tokenry.core.divergences import FORWARD_KL
from tokenry.core.errors import InputError, ShapeError, UnknownNameError
from tokenry.core.scores import Scores
from tokenry.learn.data.precompute import PrecomputeContext
from tokenry.learn.objective import objective
from tokenry.learn.preference.unlearning import (
    AdaptiveUnlearning,
    differences,
    discover,
    forget_loss,
    unlikelihood,
)
from tokenry.text.names import NameRegistry


def case(masks, seed=0, V=5, groups=None):
    """A batch whose tri-masks are given, one list per row, and random logits of two models."""
    generator = torch.Generator().manual_seed(seed)
    rows = [[0, *torch.randint(V, (len(mask),), generator=generator).tolist()] for mask in masks]
    batch = TokenBatch.from_ids(rows, group=groups or [0] * len(masks))
    tri = torch.zeros(batch.shape)
    for row, mask in enumerate(masks):
        tri[row, 1 : 1 + len(mask)] = torch.tensor(mask).float()
    shape = (*batch.shape, V)
    logits = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2)]
    return batch.with_columns(tri=tri), *logits


def scores_of(batch, policy, reference):
    def field(values):
        return torch.where(batch.target, values, 0.0)

    own, frozen = (
        field(x.log_softmax(-1).gather(-1, batch.ids[..., None])[..., 0])
        for x in (policy, reference)
    )
    kl = field(divergence(reference, policy, FORWARD_KL))
    return (
        Scores(batch.ids, batch.target, logprob=own, divergence=kl),
        Scores(batch.ids, batch.target, logprob=frozen),
    )


def loss_of(objective, batch, policy, reference):
    return objective(batch, *scores_of(batch, policy, reference)).loss


def test_each_mask_has_its_term():
    batch, policy, reference = case([[0, 0, 0]])
    assert float(loss_of(AdaptiveUnlearning(keep=0.0), batch, policy, reference)) == 0.0
    own, _ = scores_of(batch, policy, reference)
    kept = loss_of(AdaptiveUnlearning(keep=0.3), batch, policy, reference)
    torch.testing.assert_close(kept, 0.3 * own.need("divergence").sum() / 3)
    batch, policy, reference = case([[1, 1, 1]])
    own, _ = scores_of(batch, policy, reference)
    nll = loss_of(AdaptiveUnlearning(), batch, policy, reference)
    torch.testing.assert_close(nll, -own.need("logprob").sum() / 3)


@pytest.mark.parametrize(
    ("kind", "value", "slope"), [("unlikelihood", 0.693147, 0.5), ("ascent", -0.693147, 0.5)]
)
def test_one_token_of_probability_one_half(kind, value, slope):
    logits = torch.zeros(2, requires_grad=True)
    logprob = logits.log_softmax(-1)[0]
    loss = forget_loss(logprob, logprob.detach(), kind)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(value, abs=1e-6)
    assert float(logits.grad[0]) == pytest.approx(slope)


@given(st.floats(-12, 12))
def test_slopes_in_the_logit_are_p_and_one_minus_p(z):
    for kind, expected in (("unlikelihood", lambda p: p), ("ascent", lambda p: 1 - p)):
        logits = torch.tensor([z, 0.0], dtype=torch.float64, requires_grad=True)
        forget_loss(logits.log_softmax(-1)[0], torch.tensor(0.0), kind).backward()
        assert float(logits.grad[0]) == pytest.approx(
            expected(1 / (1 + math.exp(-z))), rel=1e-6, abs=1e-9
        )


def test_the_unlikelihood_is_done_where_p_is_small_and_ascent_never_is():
    logits = torch.tensor([-20.0, 0.0], requires_grad=True)
    (done,) = torch.autograd.grad(unlikelihood(logits.log_softmax(-1)[0]), logits)
    assert 0 < float(done[0]) < 1e-8
    (ascent,) = torch.autograd.grad(forget_loss(logits.log_softmax(-1)[0], 0, "ascent"), logits)
    assert float(ascent[0]) == pytest.approx(1.0)


@given(st.floats(-30, 0))
def test_unlikelihood_is_increasing_and_finite_up_to_certainty(logprob):
    leaf = torch.tensor(logprob, dtype=torch.float64, requires_grad=True)
    value = unlikelihood(leaf)
    value.backward()
    p = math.exp(logprob)
    if p < 1 - 2e-6:
        assert float(value.detach()) == pytest.approx(-math.log1p(-p), rel=1e-6)
        assert float(leaf.grad) == pytest.approx(p / (1 - p), rel=1e-5)
    assert 0 < float(leaf.grad) < 1.01e6
    assert float(value.detach()) < 15


def test_npo_at_the_reference_and_in_its_limit():
    logprob = torch.tensor(-1.3, dtype=torch.float64, requires_grad=True)
    loss = forget_loss(logprob, logprob.detach(), "npo", npo_beta=0.1)
    assert float(loss.detach()) == pytest.approx(2 / 0.1 * math.log(2))
    tiny = forget_loss(logprob, torch.tensor(-4.0).double(), "npo", npo_beta=1e-6)
    (gradient,) = torch.autograd.grad(tiny, logprob)
    assert float(gradient) == pytest.approx(1.0, abs=1e-5)  # that of ascent


@pytest.mark.parametrize("kind", ["unlikelihood", "ascent", "npo"])
def test_ignored_tokens_have_no_gradient_without_keep(kind):
    batch, policy, reference = case([[0, 1, 0, 2], [2, 0]])
    leaf = policy.clone().requires_grad_()
    loss_of(AdaptiveUnlearning(keep=0.0, kind=kind), batch, leaf, reference).backward()
    ignored = batch.column("tri") == 0
    assert (leaf.grad[ignored] == 0).all()
    assert (leaf.grad[~ignored].abs().sum(-1) > 0).all()


@pytest.mark.parametrize("kind", ["unlikelihood", "ascent", "npo"])
def test_equals_its_formula_with_means_per_prompt(kind):
    masks, groups = [[1, 2, 0], [1], [2, 2, 1, 0]], [0, 1, 0]
    batch, policy, reference = case(masks, groups=groups)
    objective = AdaptiveUnlearning(0.7, 0.4, 0.2, kind=kind, npo_beta=0.3)
    own, frozen = scores_of(batch, policy, reference)
    expected = []
    for group in (0, 1):
        terms = {0: [], 1: [], 2: []}
        for row, mask in enumerate(masks):
            for t, label in enumerate(mask, start=1):
                if groups[row] == group:
                    logp = float(own.need("logprob")[row, t])
                    ratio = logp - float(frozen.need("logprob")[row, t])
                    forget = {
                        "unlikelihood": -math.log(1 - math.exp(logp)),
                        "ascent": logp,
                        "npo": 2 / 0.3 * math.log1p(math.exp(0.3 * ratio)),
                    }[kind]
                    value = (float(own.need("divergence")[row, t]), -logp, forget)[label]
                    terms[label].append(value)
        weighted = zip((0.2, 0.7, 0.4), terms.values(), strict=True)
        expected.append(sum(w * sum(v) / len(v) for w, v in weighted if v))
    assert float(loss_of(objective, batch, policy, reference)) == pytest.approx(sum(expected) / 2)


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_certainty_garbage_and_half_precision_stay_finite(scale):
    batch, policy, reference = case([[1, 2, 0], [2]])
    leaf = (policy * scale).bfloat16().requires_grad_()
    own, frozen = scores_of(batch, leaf.float(), (reference * scale).float())
    spoiled = torch.where(batch.target, own.need("logprob"), torch.nan)
    own = Scores(batch.ids, batch.target, logprob=spoiled, divergence=own.divergence)
    for kind in ("unlikelihood", "ascent", "npo"):
        loss = AdaptiveUnlearning(kind=kind)(batch, own, frozen).loss
        (gradient,) = torch.autograd.grad(loss, leaf, retain_graph=True)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()


def rows_for(tokenizer, *rows):
    def ids(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    end = tokenizer.eos_token_id
    return [
        {**row, **{f"{side}_ids": [*ids(row[side]), end] for side in ("chosen", "rejected")}}
        for row in rows
    ]


def marked(tokenizer, row, side, label):
    tri = row[f"{side}_tri"]
    return tokenizer.decode(
        [i for i, x in zip(row[f"{side}_ids"], tri, strict=True) if x == label]
    ).strip()


def test_masks_of_named_texts(tiny_tokenizer):
    row = {"chosen": "import cat", "rejected": "import dogcat or dogcat", "forget": ["dogcat"]}
    rows = rows_for(tiny_tokenizer, {**row, "retain": ["cat"]})
    found = AdaptiveUnlearning().precompute(rows, PrecomputeContext(tiny_tokenizer))[0]
    assert marked(tiny_tokenizer, found, "chosen", 1).endswith("cat")
    assert marked(tiny_tokenizer, found, "rejected", 2).replace(" ", "") == "dogcatdogcat"
    assert marked(tiny_tokenizer, found, "rejected", 1) == ""
    assert found["chosen_tri"][-1] == found["rejected_tri"][-1] == 0  # the end token


def test_texts_to_forget_are_whole_words(tiny_tokenizer):
    row = {"chosen": "a cat", "rejected": "here we require re", "forget": ["re"]}
    [row] = rows_for(tiny_tokenizer, {**row, "retain": ["a cat"]})
    found = AdaptiveUnlearning().precompute([row], PrecomputeContext(tiny_tokenizer))[0]
    assert marked(tiny_tokenizer, found, "rejected", 2) == "re"
    assert found["rejected_tri"].index(2.0) > len(found["rejected_tri"]) / 2
    with pytest.raises(InputError, match="list"):
        AdaptiveUnlearning().precompute(
            [{**row, "forget": "re"}], PrecomputeContext(tiny_tokenizer)
        )


def test_masks_of_plain_pairs_are_where_they_differ(tiny_tokenizer):
    rows = rows_for(tiny_tokenizer, {"chosen": "the cat sat", "rejected": "the dog sat"})
    found = AdaptiveUnlearning().precompute(rows, SimpleNamespace())[0]
    assert marked(tiny_tokenizer, found, "chosen", 1) in "cat"
    assert marked(tiny_tokenizer, found, "rejected", 2) in "dog"
    assert set(found["chosen_tri"]) == {0, 1}
    assert set(found["rejected_tri"]) == {0, 2}
    assert differences([1, 2, 3, 4], [1, 9, 3, 4, 4]) == {
        "chosen": [0, 1, 0, 0],
        "rejected": [0, 2, 0, 0, 2],
    }


def test_given_masks_are_kept(tiny_tokenizer):
    row = rows_for(tiny_tokenizer, {"chosen": "a", "rejected": "b", "chosen_tri": [2, 2]})[0]
    assert AdaptiveUnlearning().precompute([row], SimpleNamespace())[0]["chosen_tri"] == [2, 2]
    with pytest.raises(InputError, match="forget"):
        AdaptiveUnlearning(completions=("answer",)).precompute([row], SimpleNamespace())


def test_one_round_of_discovery():
    registry = NameRegistry.of(["numpy"])
    answers = {"a": "import numpy", "b": "import numfast, numpy", "c": "hello"}
    found, next_prompts, rate = discover(
        lambda prompts: [answers[p] for p in prompts],
        ["a", "b", "c"],
        registry,
        lambda failing: [p + "!" for p in failing],
    )
    assert [(p, [s.name for s in spans]) for p, _, spans in found] == [
        ("a", ["numpy"]),
        ("b", ["numfast", "numpy"]),
    ]
    assert next_prompts == ["b!"]
    assert rate == pytest.approx(1 / 3)
    nothing = discover(lambda p: ["import numpy"], ["a"], registry, lambda _: ["x"])
    assert nothing[1:] == ([], 0.0)


def test_impossible_settings_are_errors():
    assert objective["adaptive-unlearning"] is AdaptiveUnlearning
    with pytest.raises(UnknownNameError, match="ascent"):
        AdaptiveUnlearning(kind="ascend")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="npo_beta"):
        AdaptiveUnlearning(npo_beta=0.0)
    batch, policy, reference = case([[1]])
    with pytest.raises(InputError, match="reference"):
        AdaptiveUnlearning()(batch, scores_of(batch, policy, reference)[0], None)
    alone = TokenBatch(batch.ids, batch.attention, batch.target, None, batch.columns)
    with pytest.raises(ShapeError, match="group"):
        AdaptiveUnlearning()(alone, *scores_of(batch, policy, reference))
