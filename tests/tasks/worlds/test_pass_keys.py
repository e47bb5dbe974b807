"""Pass keys: prompts of one length, with the key where it was said to be."""

import pytest
import torch

from tokenry.core.errors import InputError
from tokenry.tasks.worlds.pass_keys import pass_key, pass_key_prompts


def test_keys_have_five_digits_by_seed():
    one, other = (pass_key(torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert len(one) == 5
    assert one.isdigit()
    assert one != other
    assert one == pass_key(torch.Generator().manual_seed(0))


def test_prompts_have_one_length_and_the_key_at_its_depth(tiny_tokenizer):
    ids, answer = pass_key_prompts(tiny_tokenizer, "31415", (0.0, 0.5, 1.0), 400)
    assert ids.shape == (3, 400)
    assert answer.shape[0] == 3
    assert {tiny_tokenizer.decode(row) for row in answer} == {"31415"}
    needle, places = "31415 is the pass key.", []
    for row in ids:
        text = tiny_tokenizer.decode(row)
        assert text.endswith("The pass key is ")
        assert text.count("31415") == 2
        places.append(text.index(needle) / len(text))
    assert places == sorted(places)
    assert places[0] < 0.4 < places[1] < 0.75 < places[2]


def test_a_length_without_filler_is_refused(tiny_tokenizer):
    with pytest.raises(InputError, match="tokens are too few"):
        pass_key_prompts(tiny_tokenizer, "31415", (0.5,), 20)
