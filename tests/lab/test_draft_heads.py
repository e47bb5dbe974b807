"""Draft heads at laptop scale: writers, chains of guesses, and what adapters change."""

from functools import partial

import pytest
import torch

from tokenry.core.batch import TokenBatch
from tokenry.decode.speculation.fspad import FSPAD
from tokenry.lab.draft_heads import chain_acceptance, loss_among_masks, taught_masks, writer
from tokenry.learn.recipes.draft_heads import Schedule
from tokenry.model.heads.fspad import FeatureHead
from tokenry.model.heads.mtp import MaskPredictor
from tokenry.tasks.worlds.spelling import SpelledWords

WORLD = SpelledWords(3, length=16, words=5)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOKENRY_HOME", str(tmp_path_factory.mktemp("home")))
        yield writer(WORLD, 1, width=32, layers=1, steps=120, batch_size=16)


def test_a_writer_goes_on_from_the_worlds_prompts_and_spells(own):
    texts = own.write(20, torch.Generator().manual_seed(0))
    assert texts.shape == (20, 16)
    prompts = WORLD.batch(20, torch.Generator().manual_seed(0)).ids[:, :4]
    assert texts[:, :4].equal(prompts)
    known = {tuple(word) for word in WORLD.letters.tolist()}
    words = [tuple(row[at : at + 4]) for row in texts.tolist() for at in (4, 8, 12)]
    assert sum(word in known for word in words) > 0.6 * len(words)
    again = partial(own.write, 4, greedy=True)
    assert again(torch.Generator().manual_seed(1)).equal(again(torch.Generator().manual_seed(1)))


def test_chains_come_true_as_often_as_drafting_one_by_one_says(own):
    torch.manual_seed(0)
    head = FeatureHead.of(own.model, heads=2)
    rows = own.write(3, torch.Generator().manual_seed(2))
    found = chain_acceptance(own.model, head, rows, depth=2, prompt=4)
    drafter = FSPAD(head, nodes=2, depth=2, breadth=1)
    for row, rates in zip(rows.tolist(), found, strict=True):
        hits = []
        for at in range(5, len(row) - 1):  # the chain guesses row[at] and row[at + 1]
            tree = drafter.begin(own.model, row[: at - 1]).draft(row[at - 1], budget=2)
            first = tree.tokens[1] == row[at]
            hits.append((first, first and tree.tokens[2] == row[at + 1]))
        torch.testing.assert_close(rates, torch.tensor(hits).float().mean(0))
    assert 0 < float(found[:, 0].mean()) < 1


def test_masks_and_gated_lora_leave_the_models_loss_and_plain_lora_does_not(own):
    texts = own.write(8, torch.Generator().manual_seed(3)).tolist()
    options = {"k": 2, "rank": 2, "blocks": 3, "seed": 0}
    options["schedule"] = Schedule(steps=3, batch_size=4, length=16, learning_rate=1e-2)
    gated = taught_masks(own.model, texts, **options)
    plain = taught_masks(own.model, texts, gated=False, **options)
    rows = TokenBatch.from_ids(WORLD.batch(4, torch.Generator().manual_seed(4)).ids.tolist())
    untrained = MaskPredictor.of(own.model, 2, 1)
    base, one, other = (
        loss_among_masks(own.model, rows, predictor, every=4)
        for predictor in (untrained, gated, plain)
    )
    logits = own.model(rows.ids).logits[:, :-1].log_softmax(-1)
    expected = -logits.gather(-1, rows.ids[:, 1:, None])[..., 0].double()
    torch.testing.assert_close(base, expected, rtol=1e-4, atol=1e-5)
    assert one.equal(base)
    assert not other.equal(base)


def test_consistency_has_its_weight(own):
    texts = own.write(8, torch.Generator().manual_seed(3)).tolist()
    options = {"k": 2, "rank": 2, "blocks": 3, "seed": 0}
    options["schedule"] = Schedule(steps=2, batch_size=4, length=16, learning_rate=1e-2)
    with_it, without = (
        taught_masks(own.model, texts, consistency=weight, **options) for weight in (1.0, 0.0)
    )
    assert not with_it.masks.equal(without.masks)
