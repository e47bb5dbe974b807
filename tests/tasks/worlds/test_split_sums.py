"""Splits of a sum: every split is right, and nothing else is."""

import pytest
import torch

from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError
from tokenry.tasks.worlds.split_sums import SYMBOLS, SplitSums

WORLD = SplitSums()


def judged(*texts):
    rows = [[SYMBOLS.index(symbol) for symbol in text] for text in texts]
    targets = [[place >= WORLD.asked for place in range(len(row))] for row in rows]
    return WORLD.correct(TokenBatch.from_ids(rows, targets, pad_id=0)).tolist()


def test_every_split_of_a_number_is_right_and_no_other_pair_is():
    pairs = [(a, b) for a in range(100) for b in range(100)]
    right = judged(*(f"07={a:02}+{b:02}." for a, b in pairs))
    assert [pair for pair, good in zip(pairs, right, strict=True) if good] == [
        (a, 7 - a) for a in range(8)
    ]


@pytest.mark.parametrize(
    "text", ["85=38+47", "85=38+47+", "85=38=47.", "85=3.+47.", "85=.", "85=38+47..", "85=38+.7."]
)
def test_an_answer_of_another_form_is_wrong(text):
    assert judged("85=38+47.", text) == [True, False]
    assert judged(text) == [False]


def test_what_is_given_is_right_and_as_spread_as_it_can_be():
    world = SplitSums(numbers=(3,))
    batch = world.given(torch.Generator().manual_seed(0), 400)
    assert bool(world.correct(batch).all())
    seen = {"".join(SYMBOLS[i] for i in row) for row in batch.ids.tolist()}
    assert seen == {f"03={a:02}+{3 - a:02}." for a in range(4)}
    assert batch.target.sum(-1).tolist() == [world.longest] * 400


def test_prompts_ask_for_the_numbers_that_were_chosen():
    prompts = SplitSums(numbers=(40, 99)).prompts(50, torch.Generator().manual_seed(1))
    assert {tuple(row) for row in prompts.tolist()} == {(4, 0, 11), (9, 9, 11)}
    every = WORLD.prompts(2000, torch.Generator().manual_seed(1))
    assert len({tuple(row) for row in every.tolist()}) == 100


@pytest.mark.parametrize("fields", [{"largest": 0}, {"largest": 100}, {"numbers": (3, 120)}])
def test_numbers_have_two_digits(fields):
    with pytest.raises(InputError, match=r"largest|120"):
        SplitSums(**fields)
