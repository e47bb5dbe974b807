"""The sentence mask and the alignment loss, in closed form."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenry.core.errors import InputError, ShapeError
from tokenry.lab.toy_encoder_decoder import joined, small_decoder, small_encoder
from tokenry.learn.recipes.sequence_to_sequence.attention_alignment import (
    alignment_attention_loss,
    matches,
    sentence_attention_mask,
    shares,
)
from tokenry.model.encoder_decoder import read

TARGET_WORDS = torch.tensor([[0, 0, 1, 2, 3, -2]])
SOURCE_WORDS = torch.tensor([[0, 1, 2, 2, 3, -1]])
TARGET_SENTENCES = torch.tensor([[0, 0, 0, 1, 1, -2]])
SOURCE_SENTENCES = torch.tensor([[0, 0, 1, 1, 1, -1]])
IDS = (TARGET_WORDS, SOURCE_WORDS, TARGET_SENTENCES, SOURCE_SENTENCES)


def test_attention_equal_to_the_target_map_costs_nothing():
    wanted = shares(matches(TARGET_WORDS, SOURCE_WORDS))
    assert wanted[0, 3].tolist() == [0, 0, 0.5, 0.5, 0, 0]
    assert alignment_attention_loss([wanted, wanted], *IDS) == 0.0


def test_uniform_attention_over_two_tokens_costs_a_quarter():
    words = torch.tensor([[0]]), torch.tensor([[0, 1]])
    sentences = torch.tensor([[0]]), torch.tensor([[0, 0]])
    loss = alignment_attention_loss([torch.full((1, 1, 2), 0.5)], *words, *sentences)
    assert loss == 0.25


@given(st.integers(0, 99))
def test_is_the_written_sum(seed):
    generator = torch.Generator().manual_seed(seed)
    layers = torch.rand(2, 1, 6, 6, generator=generator).softmax(-1)
    expected = 0.0
    for t in range(5):
        same_word = [s for s in range(6) if SOURCE_WORDS[0, s] == TARGET_WORDS[0, t]]
        same_sentence = [s for s in range(6) if SOURCE_SENTENCES[0, s] == TARGET_SENTENCES[0, t]]
        for layer in layers:
            for s in same_sentence:
                wanted = (s in same_word) / max(1, len(same_word))
                difference = float(layer[0, t, s]) - wanted
                expected += difference**2 / len(same_sentence) / len(layers)
    assert float(alignment_attention_loss(list(layers), *IDS)) == pytest.approx(expected, abs=1e-6)


def test_attention_to_other_sentences_and_from_padding_does_not_count():
    attention = torch.rand(1, 6, 6, generator=torch.Generator().manual_seed(0))
    changed = attention + (TARGET_SENTENCES[:, :, None] != SOURCE_SENTENCES[:, None]) * 7.0
    losses = [alignment_attention_loss([a], *IDS) for a in (attention, changed)]
    assert losses[0] == losses[1]
    only = torch.tensor([[True, False, False, False, False, False]])
    first = alignment_attention_loss([attention], *IDS, target=only)
    assert 0 < first < losses[0]


def test_has_the_gradient_of_finite_differences():
    attention = torch.rand(1, 6, 6, generator=torch.Generator().manual_seed(1))
    attention.requires_grad_()
    (gradient,) = torch.autograd.grad(alignment_attention_loss([attention], *IDS), attention)
    for t, s in [(0, 0), (3, 3), (4, 2), (5, 1), (0, 4)]:
        step = torch.zeros(1, 6, 6)
        step[0, t, s] = 1e-2
        with torch.no_grad():
            high, low = (
                alignment_attention_loss([attention + sign * step], *IDS) for sign in (1, -1)
            )
        assert float(gradient[0, t, s]) == pytest.approx(float(high - low) / 2e-2, abs=1e-4)


def test_the_mask_is_equality_of_sentences_and_never_empty():
    mask = sentence_attention_mask(TARGET_SENTENCES, SOURCE_SENTENCES)
    assert mask[0, 0].tolist() == [True, True, False, False, False, False]
    assert mask[0, 3].tolist() == [False, False, True, True, True, False]
    assert mask[0, 5].all()


@torch.no_grad()
def test_under_the_mask_the_first_sentence_does_not_see_the_second():
    model = joined(small_encoder(20, 16, 0), small_decoder(20, 16, 0)).eval()
    # The encoder mixes sentences, so it reads them apart, as the mask of its own would have it.
    source = torch.tensor([[5, 6, 7, 8, 9]])
    sentences = torch.tensor([[0, 0, 1, 1, 1]])
    target, own = torch.tensor([[1, 10, 11, 12]]), torch.tensor([[0, 0, 1, 1]])
    apart = (sentences[:, :, None] == sentences[:, None])[:, None]
    inside = torch.zeros(apart.shape).masked_fill(~apart, torch.finfo(torch.float32).min)

    def logits(ids):
        encoded = model.get_encoder()(input_ids=ids, attention_mask=inside)
        mask = sentence_attention_mask(own, sentences)
        bias = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
        output = model(
            encoder_outputs=encoded, attention_mask=bias[:, None], decoder_input_ids=target
        )
        return output.logits

    changed = source.clone()
    changed[0, 3] = 15
    assert torch.allclose(logits(source)[:, :2], logits(changed)[:, :2], atol=1e-6)
    assert not torch.allclose(logits(source)[:, 2:], logits(changed)[:, 2:], atol=1e-3)
    masked = read(model, source, target, cross_mask=sentence_attention_mask(own, sentences))
    free = read(model, source, target)
    assert not torch.allclose(masked.logits, free.logits, atol=1e-3)


def test_wrong_shapes_are_named():
    with pytest.raises(ShapeError, match=r"\[1, 6, 6\], not \[1, 6, 5\]"):
        alignment_attention_loss([torch.zeros(1, 6, 5)], *IDS)
    with pytest.raises(InputError, match="at least one"):
        alignment_attention_loss([], *IDS)
    with pytest.raises(ShapeError, match=r"\[B, T\] and \[B, S\]"):
        sentence_attention_mask(torch.zeros(2, 3), torch.zeros(1, 3))
