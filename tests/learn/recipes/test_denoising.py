"""Step-unrolled denoising on predictors that are known, and on a tiny BERT."""

import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot
from transformers import BertConfig, BertForMaskedLM

from tokenry.core.errors import InputError
from tokenry.decode.denoising import iterative_decode
from tokenry.learn.recipes.denoising import corrupt, unrolled_denoising_loss, unrolled_loss
from tokenry.model.layers.denoising import DenoisingSeq2Seq, Padded

V, PAD, MASK = 16, 0, 1
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
SIZES = {
    "vocab_size": V, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
    "num_attention_heads": 4, "max_position_embeddings": 32, "pad_token_id": PAD,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.2,
}  # fmt: skip


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_loss_is_the_mean_over_steps_and_tokens():
    """A predictor that is a table of the noisy token, and draws that are certain."""
    table = one_hot(torch.tensor([3, 0, 1, 2]), 4).float() * 200.0  # draws token - 1
    smooth = torch.randn(4, 4, generator=generator())
    table = table + smooth
    target = torch.tensor([[1, 2, 3], [2, 2, 0]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    first = torch.tensor([[0, 1, 2], [3, 3, 3]])
    loss = unrolled_loss(
        lambda ids: table[ids], target, mask, first, steps=2, generator=generator()
    )
    expected = []
    for noisy in (first, (first - 1) % 4):
        expected.append(cross_entropy(table[noisy][mask], target[mask]))
    torch.testing.assert_close(loss, (expected[0] + expected[1]) / 2)
    one = unrolled_loss(lambda ids: table[ids], target, mask, first, steps=1, generator=generator())
    torch.testing.assert_close(one, expected[0])


def test_no_gradient_goes_through_the_draw():
    weights = torch.randn(4, 4, requires_grad=True)
    target, mask = torch.tensor([[1, 2, 3]]), torch.ones(1, 3).bool()
    seen = []

    def predict(ids):
        seen.append(ids)
        return weights[ids]

    first = torch.tensor([[0, 1, 2]])
    loss = unrolled_loss(predict, target, mask, first, steps=2, generator=generator())
    (gradient,) = torch.autograd.grad(loss, weights)
    fixed = sum(cross_entropy(weights[ids][0], target[0]) for ids in seen) / 2
    (expected,) = torch.autograd.grad(fixed, weights)
    torch.testing.assert_close(gradient, expected)


def test_corruption_replaces_at_the_rate_of_the_row():
    target = torch.full((3, 40_000), 7)
    rate = torch.tensor([0.0, 0.3, 1.0])
    noisy = corrupt(target, rate, V, MASK, 0.5, generator())
    assert torch.equal(noisy[0], target[0])
    # uniform noise hits the token itself once in V; a mean of 40,000 is off by 0.014 (six
    # standard errors) with probability 2e-9
    assert float((noisy[1] != 7).float().mean()) == pytest.approx(0.3 * (1 - 0.5 / V), abs=0.014)
    masks = float((noisy[2] == MASK).float().mean())
    assert masks == pytest.approx(0.5 + 0.5 / V, abs=0.015)
    without = corrupt(target, rate, V, None, 0.5, generator())
    assert float((without[2] == MASK).float().mean()) == pytest.approx(1 / V, abs=0.008)


def test_a_small_model_learns_to_translate():
    """Every token of the source shifted by one, of the same length."""
    torch.manual_seed(0)
    config = BertConfig(**{**SIZES, "initializer_range": 0.05})
    model = DenoisingSeq2Seq.from_masked_lm(BertForMaskedLM(config), 5, mask_id=MASK)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    chance = generator()

    def batch(rows):
        lengths = torch.randint(2, 5, (rows, 1), generator=chance)
        ids = torch.randint(2, V - 1, (rows, 4), generator=chance)
        mask = torch.arange(4) < lengths
        return Padded(ids, mask), Padded(ids + 1, mask)

    for _ in range(80):
        loss = unrolled_denoising_loss(model, *batch(24), generator=chance)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    source, target = batch(40)
    written = iterative_decode(model, source, iterations=4)
    wanted = [row[mask].tolist() for row, mask in zip(target.ids, target.mask, strict=True)]
    right = sum(a == b for a, b in zip(written, wanted, strict=True))
    assert right >= 32


def test_a_target_that_is_too_long_is_refused():
    model = DenoisingSeq2Seq.from_masked_lm(BertForMaskedLM(BertConfig(**SIZES)), 8)
    with pytest.raises(InputError, match="9 tokens, the model writes 8"):
        unrolled_denoising_loss(model, Padded.of([[3]]), Padded.of([[3] * 9]))
