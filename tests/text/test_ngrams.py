"""N-gram statistics against counting by hand, and their file."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenry.core.errors import InputError, ShapeError, VocabularyError
from tokenry.text.ngrams import NGramModel

TEXTS = st.lists(st.lists(st.integers(0, 4), max_size=8), min_size=1, max_size=4).filter(any)
V = 5


def by_hand(texts, context, order, k, size=V):
    """p_n(. | context) from a Counter of followers; None if the context never goes on."""
    followers = Counter(
        text[i + order - 1]
        for text in texts
        for i in range(len(text) - order + 1)
        if tuple(text[i : i + order - 1]) == tuple(context)
    )
    total = sum(followers.values())
    return [(followers[v] + k) / (total + k * size) for v in range(size)] if total else None


def test_the_example_with_and_without_smoothing():
    corpus = [[0, 1, 0, 1, 0, 2]]
    unsmoothed = NGramModel.fit(corpus, 3, add_k=1e-12).logprob_vector([0], 2)
    torch.testing.assert_close(unsmoothed.exp(), torch.tensor([0.0, 2 / 3, 1 / 3]))
    smoothed = NGramModel.fit(corpus, 3, add_k=1.0).logprob_vector([0], 2)
    torch.testing.assert_close(smoothed.exp(), torch.tensor([1.0, 3.0, 2.0]) / 6)


@given(TEXTS, st.lists(st.integers(0, 4), max_size=5), st.sampled_from([1e-3, 0.5]))
def test_every_order_against_counting(texts, context, k):
    model = NGramModel.fit(texts, V, add_k=k)
    for order in (1, 2, 3):
        found = model.logprob_vector(context, order)
        if len(context) < order - 1:
            assert found is None
            continue
        expected = by_hand(texts, context[len(context) - order + 1 :], order, k)
        if expected is None:
            assert found is None
        else:
            torch.testing.assert_close(found.exp(), torch.tensor(expected))
            assert float(found.exp().sum()) == pytest.approx(1.0, abs=1e-5)


@given(TEXTS, st.lists(st.integers(0, 4), min_size=1, max_size=6))
def test_the_interpolation_against_counting(texts, text):
    weights, k = (0.2, 0.3, 0.5), 0.01
    model = NGramModel.fit(texts, V, weights, k)
    found = model.logprob(text)
    for t, token in enumerate(text):
        mixed = matching = 0.0
        for order, weight in enumerate(weights, start=1):
            if t >= order - 1:
                p = by_hand(texts, text[t - order + 1 : t], order, k)
                if p is not None:
                    mixed, matching = mixed + weight * p[token], matching + weight
        assert float(found[t]) == pytest.approx(math.log(mixed / matching), abs=1e-5)


@given(
    TEXTS, st.lists(st.lists(st.integers(-1, 4), min_size=4, max_size=4), min_size=1, max_size=3)
)
def test_the_boost_of_a_batch_is_the_sum_of_its_orders_less_a_constant(texts, contexts):
    model = NGramModel.fit(texts, V, add_k=0.01)
    boost = model.boost(torch.tensor(contexts))
    for row, context in zip(boost, contexts, strict=True):
        usable = context[max((i + 1 for i, token in enumerate(context) if token < 0), default=0) :]
        vectors = [model.logprob_vector(usable, order) for order in (1, 2, 3)]
        total = sum(
            weight * vector
            for weight, vector in zip(model.weights, vectors, strict=True)
            if vector is not None
        )
        torch.testing.assert_close(row.log_softmax(-1), total.log_softmax(-1))
        matching = sum(
            weight
            for weight, vector in zip(model.weights, vectors, strict=True)
            if vector is not None
        )
        scaled = model.boost(torch.tensor([context]), renormalise=True)[0]
        torch.testing.assert_close(scaled, row / matching)


def test_texts_do_not_run_into_each_other():
    model = NGramModel.fit([[0, 1], [2, 3]], V)
    assert model.logprob_vector([1], 2) is None
    assert model.logprob_vector([0, 1], 3) is None
    assert model.logprob_vector([7], 2) is None
    torch.testing.assert_close(
        model.boost(torch.tensor([[1]])), model.boost(torch.zeros(1, 0, dtype=torch.long))
    )


def test_an_empty_text_has_no_tokens_to_score_and_no_perplexity():
    model = NGramModel.fit([[0, 1, 0], []], V)
    assert model.logprob([]).shape == model.knows([]).shape == (0,)
    assert model.logprob(torch.zeros(0)).dtype == torch.float32
    assert model.perplexity([[], [0, 1]]) == pytest.approx(model.perplexity([[0, 1]]))
    for nothing in ([], [[]], [[], []]):
        with pytest.raises(InputError, match="no perplexity"):
            model.perplexity(nothing)
    assert model.boost(torch.zeros(2, 0, dtype=torch.long)).shape == (2, V)
    for order in (0, 4, 1.5):
        with pytest.raises(InputError, match=r"\[1, 3\]"):
            model.logprob_vector([0], order)


def test_its_own_corpus_is_less_surprising_than_another():
    generator = torch.Generator().manual_seed(0)
    own = torch.randint(0, 50, (20, 30), generator=generator).tolist()
    other = torch.randint(0, 50, (20, 30), generator=generator).tolist()
    model = NGramModel.fit(own, 50)
    assert model.perplexity(own) < 5 < model.perplexity(other)
    assert model.knows([own[0][0]]).tolist() == [True]


def test_a_file_gives_the_same_model_back(tmp_path):
    model = NGramModel.fit([[0, 1, 0, 2], [3]], V, (0.5, 0.5), 0.1)
    model.save(tmp_path / "style.safetensors")
    again = NGramModel.load(tmp_path / "style.safetensors")
    assert (again.vocab_size, again.weights, again.add_k) == (V, (0.5, 0.5), 0.1)
    assert torch.equal(model.logprob([0, 1, 0, 4]), again.logprob([0, 1, 0, 4]))
    assert [file.name for file in tmp_path.iterdir()] == ["style.safetensors"]


def test_a_large_vocabulary_and_four_orders_do_not_overflow():
    model = NGramModel.fit([[262_143, 262_142, 262_141, 262_140]], 262_144, (1, 1, 1, 1))
    found = model.logprob_vector([262_143, 262_142, 262_141], 4)
    assert found is not None
    assert int(found.argmax()) == 262_140


def test_what_cannot_be_counted_or_read_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no token"):
        NGramModel.fit([[]], V)
    with pytest.raises(VocabularyError, match="from 0 to 9"):
        NGramModel.fit([[0, 9]], V)
    with pytest.raises(VocabularyError, match="from 5 to 5"):
        NGramModel.fit([[0]], V).logprob([5])
    with pytest.raises(InputError, match="add_k"):
        NGramModel.fit([[0]], V, add_k=0.0)
    with pytest.raises(InputError, match="weights"):
        NGramModel.fit([[0]], V, weights=(0.5, 0.0))
    with pytest.raises(ShapeError, match=r"\[B, T\]"):
        NGramModel.fit([[0]], V).boost(torch.tensor([0]))
    with pytest.raises(InputError, match="no file"):
        NGramModel.load(tmp_path / "missing")
    (tmp_path / "broken").write_bytes(b"x" * 20)
    with pytest.raises(InputError, match="not a file"):
        NGramModel.load(tmp_path / "broken")


def test_followers_of_a_context_are_counted_by_hand():
    model = NGramModel.fit([[0, 1, 0, 1, 0, 2], [2, 0, 1]], 4)
    counted = {(): {0: 4, 1: 3, 2: 2}, (0,): {1: 3, 2: 1}, (1, 0): {1: 1, 2: 1}, (3,): {}}
    for context, expected in counted.items():
        tokens, counts = model.followers(context)
        assert dict(zip(tokens.tolist(), counts.tolist(), strict=True)) == expected
    with pytest.raises(InputError, match="context"):
        model.followers((0, 1, 0))
