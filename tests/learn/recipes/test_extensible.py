"""The two-stream loss against its definition, who sees whom, and what training touches."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tokenry.core.errors import InputError, ShapeError
from tokenry.learn.recipes.extensible import (
    extensible_loss,
    train_extensible,
    two_stream_batch,
    two_stream_logprob,
)
from tokenry.model.memory.extensible import (
    ExtensibleSession,
    ExtensibleTokenizer,
    strided_downscale,
)

CHUNK = 6


def ids_of(*shape, seed=0):
    return torch.randint(2, 64, shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return ExtensibleTokenizer.from_lm(tiny_model, layers=1).eval()


@torch.no_grad()
def losses(model, tokenizer, ids, ratio):
    """-log p of every token of the chunks behind the first, [B, T - CHUNK]."""
    return -two_stream_logprob(model, two_stream_batch(model, tokenizer, ids, CHUNK, ratio))


@pytest.mark.parametrize(("length", "ratio"), [(24, 2), (24, 4), (22, 6), (19, 1), (13, 9)])
def test_the_loss_is_that_of_each_chunk_read_by_itself(tiny_model, tokenizer, length, ratio):
    ids = ids_of(2, length)
    found = losses(tiny_model, tokenizer, ids, ratio)
    for row in range(2):
        for start in range(CHUNK, length, CHUNK):
            session = ExtensibleSession(tiny_model, tokenizer, ratio, CHUNK)
            session.feed(ids[row, :start])
            session.compress()
            expected = -session.logprob(ids[row, start : start + CHUNK])
            part = found[row, start - CHUNK : start]
            torch.testing.assert_close(part, expected, rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        mean = float(extensible_loss(tiny_model, tokenizer, ids, CHUNK, ratio))
    assert mean == pytest.approx(float(found.mean()), rel=1e-5)


@pytest.mark.parametrize("ratio", [1, 2, 4, 6])
def test_there_are_as_many_embeddings_and_labels_as_there_should_be(tiny_model, tokenizer, ratio):
    ids = ids_of(2, 24)
    batch = two_stream_batch(tiny_model, tokenizer, ids, CHUNK, ratio)
    embeddings = 3 * -(-CHUNK // ratio)
    assert batch.embeddings.shape == (2, embeddings + 18, 32)
    assert batch.labels.shape == (2, 18)
    assert torch.equal(batch.labels, ids[:, CHUNK:])
    assert len(set(batch.predictors.tolist())) == 18
    with torch.no_grad():
        states = tokenizer.encode(ids, CHUNK)
    for row, chunk, j in ((0, 0, 1), (1, 2, 1), (1, 1, CHUNK // ratio)):
        # et_{i,j} is o at k·j, counted from 1 in its chunk
        place = chunk * -(-CHUNK // ratio) + j - 1
        expected = states[row, chunk * CHUNK + ratio * j - 1]
        torch.testing.assert_close(batch.embeddings[row, place], expected, rtol=1e-4, atol=1e-5)


def test_a_token_changes_only_what_comes_behind_it(tiny_model, tokenizer):
    ids = ids_of(1, 24)
    before = losses(tiny_model, tokenizer, ids, 2)
    for place in (2, 8, 15, 23):
        other = ids.clone()
        other[0, place] = 2 + (ids[0, place] - 1) % 62
        changed = (losses(tiny_model, tokenizer, other, 2) - before).abs()[0] > 1e-6
        where = set((changed.nonzero()[:, 0] + CHUNK).tolist())
        assert min(where, default=place) >= place
        if place < 18:  # a later chunk reads it through the embeddings
            assert max(where) >= 18
        if place >= CHUNK:
            assert place in where


def test_only_the_tokenizer_learns(tiny_model):
    model = copy.deepcopy(tiny_model).train()
    tokenizer = ExtensibleTokenizer.from_lm(model, layers=1)
    weights = copy.deepcopy(model.state_dict())
    start = copy.deepcopy(tokenizer.state_dict())
    found = train_extensible(
        model, tokenizer, ids_of(4, 18), chunk=CHUNK, ratios=(2, 3), steps=15, batch_size=4,
        learning_rate=5e-3,
    )  # fmt: skip
    assert sum(found[-5:]) < sum(found[:5])
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(weight.grad is None and weight.requires_grad for weight in model.parameters())
    assert model.training
    moved = [name for name, value in tokenizer.state_dict().items() if (value != start[name]).any()]
    assert "out.weight" in moved
    assert any("layers.0" in name for name in moved)


def test_training_repeats_with_its_seed(tiny_llama):
    def run(seed):
        torch.manual_seed(0)
        tokenizer = ExtensibleTokenizer.from_lm(tiny_llama, layers=1)
        return train_extensible(
            tiny_llama, tokenizer, ids_of(8, 18), chunk=CHUNK, ratios=(2, 3), steps=3,
            batch_size=2, seed=seed,
        )  # fmt: skip

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_raw_embeddings_at_ratio_1_give_the_models_own_loss(tiny_model):
    class Raw(nn.Module):
        def forward(self, input_ids):
            embedded = tiny_model.get_input_embeddings()(input_ids)
            return SimpleNamespace(last_hidden_state=embedded)

    ids = ids_of(2, 20)
    found = losses(tiny_model, ExtensibleTokenizer(Raw(), nn.Identity()), ids, 1)
    with torch.no_grad():
        logprobs = tiny_model(ids).logits.log_softmax(-1)[:, CHUNK - 1 : -1]
    expected = -logprobs.gather(-1, ids[:, CHUNK:, None])[..., 0]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_padding_on_the_right_changes_nothing(tiny_model, tokenizer):
    short, long = ids_of(1, 14), ids_of(1, 22, seed=1)
    padded = torch.cat([torch.cat([short, torch.zeros(1, 8, dtype=torch.long)], 1), long])
    real = torch.ones_like(padded, dtype=torch.bool)
    real[0, 14:] = False
    with torch.no_grad():
        found = extensible_loss(tiny_model, tokenizer, padded, CHUNK, 2, target=real)
        apart = [
            extensible_loss(tiny_model, tokenizer, ids, CHUNK, 2) * (ids.shape[1] - CHUNK)
            for ids in (short, long)
        ]
    assert float(found) == pytest.approx(float(sum(apart)) / (8 + 16), rel=1e-4)


def test_a_head_that_is_not_linear_goes_through_the_logits(tiny_model, tokenizer, monkeypatch):
    import tokenry.learn.recipes.extensible as module

    ids = ids_of(2, 20)
    expected = losses(tiny_model, tokenizer, ids, 2)
    monkeypatch.setattr(module, "linear_head", lambda model: None)
    torch.testing.assert_close(
        losses(tiny_model, tokenizer, ids, 2), expected, rtol=1e-3, atol=1e-3
    )


def test_bad_input_is_said(tiny_llama):
    tokenizer = ExtensibleTokenizer.from_lm(tiny_llama, layers=1)
    with pytest.raises(ShapeError, match="more than one chunk"):
        extensible_loss(tiny_llama, tokenizer, ids_of(1, 6), CHUNK, 2)
    with pytest.raises(ShapeError, match="target"):
        extensible_loss(
            tiny_llama, tokenizer, ids_of(1, 9), CHUNK, 2, target=torch.ones(1, 8).bool()
        )
    with pytest.raises(InputError, match="the model has 512"):
        extensible_loss(tiny_llama, tokenizer, ids_of(1, 600), 300, 1)
    with pytest.raises(InputError, match="ratio is 0"):
        extensible_loss(tiny_llama, tokenizer, ids_of(1, 9), CHUNK, 0)
    with pytest.raises(InputError, match="training needs"):
        train_extensible(tiny_llama, tokenizer, ids_of(1, 9), ratios=())
    assert strided_downscale(torch.zeros(1, 0, 3), 2).shape == (1, 0, 3)
