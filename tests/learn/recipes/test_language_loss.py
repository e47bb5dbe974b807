"""The language loss is transformers' own."""

import pytest
import torch

from tokenry.learn.recipes.language_loss import language_loss


def batches_of(count=2, rows=8, length=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(2, 64, (rows, length), generator=generator) for _ in range(count)]


def test_the_language_loss_is_that_of_transformers(tiny_llama):
    ids = batches_of(1)[0]
    expected = float(tiny_llama(ids, labels=ids).loss.detach())
    assert float(language_loss(tiny_llama, ids).detach()) == pytest.approx(expected, rel=1e-5)
    labels = ids.clone()
    labels[:, :5] = -100
    expected = float(tiny_llama(ids, labels=labels).loss.detach())
    batch = {"input_ids": ids, "labels": labels}
    assert float(language_loss(tiny_llama, batch).detach()) == pytest.approx(expected, rel=1e-5)
    attention = torch.ones_like(ids)
    attention[0, 10:] = 0
    labels = ids.masked_fill(attention == 0, -100)
    expected = float(tiny_llama(ids, attention_mask=attention, labels=labels).loss.detach())
    batch = {"input_ids": ids, "attention_mask": attention}
    assert float(language_loss(tiny_llama, batch).detach()) == pytest.approx(expected, rel=1e-5)
