"""Readers of keyed tokens and of facts: what they learn, and losses against plain passes."""

import math

import pytest
import torch

from tokenry.core.reduction import select_top
from tokenry.lab.recall import (
    facts_model,
    keyed_model,
    loss_behind,
    loss_from,
    raw_embeddings,
    taught_tokenizer,
)
from tokenry.model.memory.extensible import mean_pool_downscale, strided_downscale
from tokenry.tasks.worlds.facts import Facts
from tokenry.tasks.worlds.keyed_tokens import KeyedTokens

FACTS = Facts(keys=4, values=3, window=16, chunk=4, chunks=5)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENRY_HOME", str(tmp_path))


def test_a_keyed_model_learns_to_answer_and_is_kept():
    world = KeyedTokens(seed=1, keys=12, values=3, width=32, noise=0.1)
    model = keyed_model(world, 120, shortest=2, longest=4, batch_size=32)
    questions = world.questions(200, 3, torch.Generator().manual_seed(0))
    assert model.accuracy(*questions) > 0.6
    assert keyed_model(world, 0).accuracy(*questions) < 0.6
    again = keyed_model(world, 120, shortest=2, longest=4, batch_size=32)
    assert again.answers(*questions[:2]).equal(model.answers(*questions[:2]))
    # the question stands last
    tokens, question, _ = questions
    inputs = torch.cat([tokens, question[:, None]], 1)
    logits = model.model(inputs_embeds=inputs).logits[:, -1]
    torch.testing.assert_close(model.answers(tokens, question), logits)


def test_operations_and_diagnostics_of_a_reader():
    world = KeyedTokens(seed=1, keys=12, values=3, width=32)
    model = keyed_model(world, 0)
    # two layers, each 4 d^2 of attention, 3 d 2d of feed-forward, and 2 n d per token
    weights = 2 * (4 * 32**2 + 3 * 32 * 64)
    assert model.operations(5) == 2 * 6 * (weights + 2 * 2 * 6 * 32) + 2 * 32 * 3
    tokens, question, _ = world.questions(2, 6, torch.Generator().manual_seed(0))
    report = model.described(
        lambda x, q: select_top((x @ q[..., None])[..., 0], 6), tokens, question
    )
    assert report["coverage"] == pytest.approx(1.0, abs=1e-5)
    assert report["stability"] == 1.0
    assert report["information lost"] == pytest.approx(0.0, abs=1e-5)


def test_a_facts_model_looks_values_up_inside_its_window():
    model = facts_model(FACTS, seed=0, steps=250)
    ids = FACTS.short_texts(100, torch.Generator().manual_seed(1))
    asking = torch.arange(FACTS.stated, FACTS.window, 2)
    right = model(ids).logits[:, asking].argmax(-1) == ids[:, asking + 1]
    assert float(right.float().mean()) > 0.8


def test_losses_of_the_last_chunk_are_those_of_a_plain_pass():
    model = facts_model(FACTS, seed=0, steps=2)
    texts = FACTS.long_texts(3, torch.Generator().manual_seed(1))
    for start in (0, 8, 16):
        logits = model(texts[:, start:]).logits.log_softmax(-1)
        expected = [
            -(logits[row, 16 - start, texts[row, 17]] + logits[row, 18 - start, texts[row, 19]]) / 2
            for row in range(3)
        ]
        torch.testing.assert_close(loss_from(model, FACTS, texts, start), torch.stack(expected))


def test_one_embedding_a_token_is_the_whole_text():
    """With a ratio of 1 the raw embeddings stand where the tokens stood."""
    wide = Facts(keys=4, values=3, window=24, chunk=4, chunks=5)
    model = facts_model(wide, seed=0, steps=2)
    texts = wide.long_texts(3, torch.Generator().manual_seed(1))
    found = loss_behind(model, wide, texts, raw_embeddings(model), 1, mean_pool_downscale)
    torch.testing.assert_close(found, loss_from(model, wide, texts, 0), rtol=1e-4, atol=1e-4)


def test_a_taught_tokenizer_beats_one_that_was_not():
    model = facts_model(FACTS, seed=0, steps=250)
    generator = torch.Generator().manual_seed(2)
    texts, asked = FACTS.long_texts(64, generator), FACTS.long_texts(64, generator)
    losses = [
        float(loss_behind(model, FACTS, asked, tokenizer, 2, strided_downscale).mean())
        for tokenizer in (
            taught_tokenizer(model, FACTS, texts, (2,), steps, seed=0) for steps in (1, 80)
        )
    ]
    assert losses[1] < losses[0]
    assert losses[1] < math.log(3) + 1
