"""Speeds of drafters: their arithmetic, and that replaying and redrafting agree."""

import pytest

from tokenry.decode.speculation.baselines import NoDraft, PromptLookup
from tokenry.decode.speculation.lookahead import Lookahead
from tokenry.decode.speculation.recycling import TokenRecycling
from tokenry.decode.speculation.tree import TreeTemplate
from tokenry.lab.drafting import (
    Frozen,
    Speed,
    alike,
    as_replayed,
    redrafted,
    replayed,
    speed,
    written,
)
from tokenry.lab.table import Table

PROMPTS = [[5, 9, 3, 8, 2, 7, 4, 6, 5, 9, 3], [1, 2, 3, 1, 2, 3, 1, 2]]


def test_tokens_per_pass_over_texts_and_text_by_text():
    found = Speed((10, 20), (5, 20))
    assert found.per_pass == 30 / 25
    assert found.each == [2.0, 1.0]
    assert found.mean == 1.5
    assert found[1:].per_pass == 1.0
    assert (found + Speed((5,), (1,))) == Speed((10, 20, 5), (5, 20, 1))
    table = Table()
    found.add_to(table, "a", seed=3)
    assert table.values("a") == {3: 1.2}


def test_margins_are_passes_saved_and_tokens_above_a_rate():
    assert Speed((8, 8), (4, 5)).over(Speed((8, 8), (6, 5))).margins == (2.0, 0.0)
    assert Speed((10, 20), (5, 20)).above(1.4).margins == pytest.approx((3.0, -8.0))


def test_without_a_draft_every_token_is_a_pass(tiny_model):
    texts = written(tiny_model, PROMPTS, 12, eos_token_id=[])
    again = redrafted(tiny_model, texts, NoDraft(), eos_token_id=[])
    assert speed(again) == Speed((12, 12), (12, 12))
    assert alike(again, texts)
    assert not alike(again, texts[::-1])


def test_replaying_takes_the_passes_that_drafting_takes(tiny_model):
    texts = written(tiny_model, PROMPTS, 30, eos_token_id=[])
    real = speed(redrafted(tiny_model, texts, PromptLookup(), eos_token_id=[]))
    assert replayed(tiny_model, PromptLookup(), texts) == real
    assert real.per_pass > 1
    assert as_replayed(tiny_model, lambda: Lookahead(nodes=8), texts[0], eos_token_id=[])
    changed = (texts[0][0], [*texts[0][1][:-1], (texts[0][1][-1] + 1) % 64])
    assert not as_replayed(tiny_model, lambda: Lookahead(nodes=8), changed, eos_token_id=[])


def test_a_frozen_drafter_uses_what_it_knew_and_learns_nothing(tiny_model):
    texts = written(tiny_model, PROMPTS, 20, eos_token_id=[])
    recycling = TokenRecycling(template=TreeTemplate(((0,), (0, 0))), learn_prompt="nothing")
    nothing_known = replayed(tiny_model, Frozen(recycling), texts)
    assert nothing_known.per_pass == 1.0
    redrafted(tiny_model, texts, recycling, eos_token_id=[])
    before = recycling.table.ids.clone()
    assert replayed(tiny_model, Frozen(recycling), texts).per_pass > 1
    assert recycling.table.ids.equal(before)


def test_options_of_each_text(tiny_model):
    texts = written(tiny_model, PROMPTS, 3, eos_token_id=[])
    seen = [[], []]
    each = [{"on_step": lambda tree, accepted, row=row: row.append(tree)} for row in seen]
    redrafted(tiny_model, texts, NoDraft(), each, eos_token_id=[])
    assert [len(row) for row in seen] == [2, 2]
