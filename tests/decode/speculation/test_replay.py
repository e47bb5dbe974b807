"""Replaying says what decoding would have done."""

import pytest

from tokenry.decode.speculation.baselines import PromptLookup
from tokenry.decode.speculation.context import ContextNGrams
from tokenry.decode.speculation.lookahead import Lookahead
from tokenry.decode.speculation.replay import replay
from tokenry.decode.speculation.speculate import generate_with_drafter

PROMPT = [5, 9, 3, 8, 2, 7, 4, 6, 5, 9, 3]


@pytest.mark.parametrize(
    "make", [PromptLookup, lambda: ContextNGrams(nodes=6), lambda: Lookahead(nodes=8)]
)
def test_the_steps_are_those_of_decoding(tiny_model, make):
    found = generate_with_drafter(tiny_model, PROMPT, make(), 40, eos_token_id=[])
    assert replay(tiny_model, make(), PROMPT, found.new_ids) == found.accept_lengths
