"""N-gram style: a product of experts, for any batch and padding."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenry.core.divergence import divergence
from tokenry.core.divergences import JENSEN_SHANNON
from tokenry.core.errors import InputError, VocabularyError
from tokenry.decode.steering.ngram_style import NGramStyle
from tokenry.text.ngrams import NGramModel

CORPUS = [[2, 3, 4, 2, 3, 5, 6], [2, 3, 4, 4, 1], [6, 5, 6, 5, 7]]
V = 9
NGRAMS = NGramModel.fit(CORPUS, V, add_k=0.01)


def logits(seed=0, rows=1):
    return torch.randn(rows, V, generator=torch.Generator().manual_seed(seed))


@given(st.lists(st.integers(0, 8), min_size=2, max_size=5), st.floats(0.01, 1.0))
def test_it_is_the_product_of_experts(context, strength):
    scores = logits()
    steered = NGramStyle(NGRAMS, strength)(torch.tensor([context]), scores)
    product = scores.log_softmax(-1)[0]
    for order, weight in enumerate(NGRAMS.weights, start=1):
        vector = NGRAMS.logprob_vector(context, order)
        if vector is not None:
            product = product + strength * weight * vector
    torch.testing.assert_close(steered.log_softmax(-1)[0], product.log_softmax(-1))


def test_no_strength_returns_the_logits_themselves():
    scores = logits()
    assert NGramStyle(NGRAMS, 0.0)(torch.tensor([[2, 3]]), scores) is scores


def test_an_unseen_context_leaves_the_unigrams():
    scores = logits()
    steered = NGramStyle(NGRAMS, 0.5)(torch.tensor([[0, 8]]), scores)
    unigrams = scores[0] + 0.5 * 0.2 * NGRAMS.logprob_vector([], 1)
    torch.testing.assert_close(steered[0].log_softmax(-1), unigrams.log_softmax(-1))


def test_great_strength_follows_the_ngrams():
    steered = NGramStyle(NGRAMS, 1e4)(torch.tensor([[2, 3]]), logits())
    assert int(steered.argmax()) == 4  # 2 3 4 occurs twice


def test_the_distance_from_the_model_grows_with_strength():
    scores, context = logits(3), torch.tensor([[2, 3]])
    distances = [
        float(divergence(scores, NGramStyle(NGRAMS, strength)(context, scores), JENSEN_SHANNON))
        for strength in (0.0, 0.02, 0.05, 0.1, 0.2)
    ]
    assert distances[0] < 1e-6
    assert distances == sorted(distances)


def test_padding_at_the_left_is_no_context():
    ngrams = NGramModel.fit([[0, 3, 4], [0, 0, 5], *CORPUS], V)
    style = NGramStyle(ngrams, 0.5, pad_token_id=0)
    scores = logits(rows=2)
    padded = style(torch.tensor([[0, 0, 3], [2, 3, 4]]), scores)
    alone = style(torch.tensor([[3]]), scores[:1])
    assert torch.equal(padded[:1], alone)
    assert not torch.equal(NGramStyle(ngrams, 0.5)(torch.tensor([[0, 0, 3]]), scores[:1]), alone)


def test_a_padded_output_keeps_its_last_logits():
    scores = torch.randn(1, V + 3, generator=torch.Generator().manual_seed(0))
    steered = NGramStyle(NGRAMS, 0.5)(torch.tensor([[2, 3]]), scores)
    assert torch.equal(steered[:, V:], scores[:, V:])
    with pytest.raises(VocabularyError, match="9 tokens"):
        NGramStyle(NGRAMS, 0.5)(torch.tensor([[2, 3]]), torch.zeros(1, 5))


def test_generation_with_any_padding_side_agrees(tiny_llama):
    """A greedy batch, padded at the left, writes what each row writes alone."""
    prompts = [[7, 9, 11, 13], [5, 6]]
    corpus = torch.randint(2, 60, (20, 30), generator=torch.Generator().manual_seed(0)).tolist()
    style = NGramStyle(NGramModel.fit(corpus, 64), 0.3, pad_token_id=0)
    ids = torch.tensor([prompts[0], [0, 0, *prompts[1]]])
    options = {"logits_processor": [style], "do_sample": False, "max_new_tokens": 6}
    together = tiny_llama.generate(ids, attention_mask=(ids != 0).long(), **options)
    for row, prompt in zip(together, prompts, strict=True):
        alone = tiny_llama.generate(torch.tensor([prompt]), **options)[0, len(prompt) :]
        assert row[4 : 4 + len(alone)].tolist() == alone.tolist()


def test_a_negative_strength_is_refused():
    with pytest.raises(InputError, match="-1"):
        NGramStyle(NGRAMS, -1.0)
