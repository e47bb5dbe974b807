"""The classifier against the label's exact probability under an enumerable model."""

import itertools
import math

import pytest
import torch

from tokenry.core.errors import InputError, ShapeError
from tokenry.decode.constraints.base import Anything
from tokenry.decode.prefix_classifier import ClassifiedAttribute, LengthAttribute
from tokenry.decode.rollouts import rollouts
from tokenry.decode.samplers.beam import BeamSearch
from tokenry.decode.samplers.request import Request
from tokenry.lab.toy_model import toy_model
from tokenry.learn.recipes.prefix_classifier import (
    attribute_labels,
    remaining_labels,
    train_prefix_classifier,
)
from tokenry.model.decoding import DecodingState
from tokenry.model.heads.prefix_classifier import PrefixClassifier

V, LIMIT, START, END = 5, 6, 0, 1


@pytest.fixture(scope="module")
def world():
    """A random transformer, its samples, and all its texts with their probabilities."""
    model = toy_model(V, 16, seed=3, width=32, start=START).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.mul_(6)  # far from uniform
    samples = rollouts(model, [[START]], 2000, max_new_tokens=LIMIT, ends=[END])[0]
    texts = {}
    prefixes = {(): 1.0}
    for length in range(LIMIT):
        rows = [text for text in prefixes if len(text) == length]
        with torch.no_grad():
            ids = torch.tensor([[START, *text] for text in rows])
            chances = model(ids).logits[:, -1].double().softmax(-1).tolist()
        for text, row in zip(rows, chances, strict=True):
            texts[text] = prefixes[text] * row[END]
            for token in range(V):
                if token != END:
                    prefixes[(*text, token)] = prefixes[text] * row[token]
    return model, samples, texts, prefixes


def wanted(text):
    return 3 not in text


def request(model, **options):
    start = DecodingState.start(model, torch.tensor([[START]]))
    return Request(
        start, Anything(V, [END]), (START,), max_new_tokens=LIMIT, loaded=(model, None), **options
    )


def test_learns_the_probability_of_the_attribute(world):
    model, samples, texts, prefixes = world
    labels = attribute_labels(samples, [END], wanted)
    classifier = train_prefix_classifier(
        model, [[START]], samples, labels, steps=200, batch_size=512
    )
    attribute = ClassifiedAttribute.of(classifier, model, [END], wanted)
    errors, blind, mass = 0.0, 0.0, 0.0
    good = {text: p for text, p in texts.items() if wanted(text)}
    base = math.fsum(good.values())
    for length in range(4):
        for text in itertools.product([t for t in range(V) if t != END], repeat=length):
            ids = torch.tensor([[START, *text]])
            hidden = model(ids, output_hidden_states=True).hidden_states[-1][:, -1]
            tokens = torch.arange(V)[None]
            q = attribute([text], tokens, hidden).exp()[0].tolist()
            assert q[END] == float(wanted(text))
            for token in (0, 2, 3, 4):
                prefix = (*text, token)
                chance = prefixes[prefix]
                inside = math.fsum(p for t, p in good.items() if t[: len(prefix)] == prefix)
                errors += chance * abs(q[token] - inside / chance)
                blind += chance * abs(base - inside / chance)
                mass += chance
    assert errors / mass < 0.03
    assert errors < blind / 8


def test_learns_the_remaining_length(world):
    model, samples, texts, _ = world
    labels = remaining_labels(samples, [END], LIMIT)
    classifier = train_prefix_classifier(
        model, [[START]], samples, labels, classes=LIMIT + 1, steps=200, batch_size=512
    )
    hidden = model(torch.tensor([[START]]), output_hidden_states=True).hidden_states[-1][:, -1]
    attribute = LengthAttribute.of(classifier, model, [END], 3)
    q = attribute([()], torch.arange(V)[None], hidden).exp()[0]
    assert q[END] == 0.0
    for token in (0, 2, 3, 4):
        begun = {text: p for text, p in texts.items() if text[:1] == (token,)}
        three = math.fsum(p for text, p in begun.items() if len(text) == 3)
        ids = torch.tensor([[START]])
        own = float(model(ids).logits[0, -1].double().softmax(-1)[token].detach())
        assert float(q[token]) == pytest.approx(three / own, abs=0.08)
    there = attribute([(2, 2, 2)], torch.arange(V)[None], hidden)
    assert there[0, END] == 0.0
    assert bool((there[0, [0, 2, 3, 4]] == -math.inf).all())


def test_guides_a_beam_search_to_texts_that_have_the_attribute(world):
    model, samples, texts, _ = world
    labels = attribute_labels(samples, [END], wanted)
    classifier = train_prefix_classifier(
        model, [[START]], samples, labels, steps=100, batch_size=512
    )
    guided = BeamSearch(ClassifiedAttribute.of(classifier, model, [END], wanted), beams=20)(
        request(model), 1
    )
    mode = max((text for text in texts if wanted(text)), key=texts.__getitem__)
    assert tuple(guided.ids[0]) == mode
    assert float(guided.log_weights[0]) == pytest.approx(math.log(texts[mode]), abs=1e-4)


def test_labels_of_prefixes():
    texts = [[3, 2, END], [2, 2, 3, 3], [END]]
    assert attribute_labels(texts, [END], lambda text: len(text) < 3) == [[1] * 3, [0] * 4, [1]]
    assert remaining_labels(texts, [END], 5) == [[1, 0, 0], [5] * 4, [0]]
    assert remaining_labels(texts, [END], 1) == [[1, 0, 0], [1] * 4, [0]]


def test_the_language_model_is_left_alone(world):
    model, samples, _, _ = world
    before = [weight.clone() for weight in model.parameters()]
    texts = samples[:50]
    labels = attribute_labels(texts, [END], wanted)
    first, second = (
        train_prefix_classifier(model, [[START]], texts, labels, steps=3) for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(weight.grad is None for weight in model.parameters())
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)  # same seed, same classifier


def test_reads_bfloat16_states(world):
    model, _, _, _ = world
    classifier = PrefixClassifier.of(model)
    hidden = torch.randn(2, 1, 32).bfloat16()
    found = classifier(hidden, torch.randn(2, 3, 32).bfloat16())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(2, 3))


def test_what_does_not_fit_is_said(world):
    model, _, _, _ = world
    with pytest.raises(ShapeError, match="text 0 has 2 tokens and 1 labels"):
        train_prefix_classifier(model, [[START]], [[2, 3]], [[1]])
    with pytest.raises(InputError, match="between 0 and 4"):
        train_prefix_classifier(model, [[START]], [[2, 3]], [[0, 4]])
    with pytest.raises(InputError, match="classes is 1"):
        PrefixClassifier.of(model, classes=1)
