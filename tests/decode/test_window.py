"""Texts end where the model has no further positions, and it is said."""

import copy

import pytest
import torch

from tokenry.core.errors import InputError
from tokenry.decode.controls import generate_with_control
from tokenry.decode.generate import generate
from tokenry.decode.speculation.speculate import drafter as drafters
from tokenry.decode.speculation.speculate import generate_with_drafter, speculate

WINDOW = 16
PROMPT = [5, 17, 9, 33, 21, 9, 40, 12, 3]
FULL = "fills the model's window of 16 tokens"


@pytest.fixture(scope="module")
def learned_positions():
    """Beyond its table of positions this model has no rows, and raises IndexError."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_positions=WINDOW, n_embd=32, n_layer=2, n_head=4)
    return GPT2LMHeadModel(config).eval()


@pytest.fixture
def short(tiny_llama_text):
    model = copy.copy(tiny_llama_text)
    model.config = copy.deepcopy(tiny_llama_text.config)
    model.config.max_position_embeddings = WINDOW
    return model


@pytest.mark.parametrize("name", drafters.names())
def test_no_draft_reads_past_the_window(learned_positions, name):
    with pytest.warns(UserWarning, match=FULL):
        found = generate_with_drafter(
            learned_positions, PROMPT, drafters[name](), 30, eos_token_id=[]
        )
    plain = learned_positions.generate(
        torch.tensor([PROMPT]), max_length=WINDOW, do_sample=False, pad_token_id=0
    )
    assert found.ids == plain[0].tolist()
    assert found.window_full
    exact = generate_with_drafter(
        learned_positions, PROMPT, drafters[name](), WINDOW - len(PROMPT), eos_token_id=[]
    )
    assert exact.ids == found.ids
    assert not exact.window_full  # as long as was asked for


def test_rows_of_a_batch_end_at_their_own_length(learned_positions):
    with pytest.warns(UserWarning, match=FULL):
        found = speculate(
            learned_positions, [PROMPT, PROMPT[:4]], drafters["goose"](), 10, eos_token_id=[]
        )
    assert [len(text.ids) for text in found] == [WINDOW, 14]
    assert [text.window_full for text in found] == [True, False]


def test_generate_ends_there(short, tiny_tokenizer):
    for options in ({}, {"sampler": "greedy"}):
        with pytest.warns(UserWarning, match=FULL):
            found = generate((short, tiny_tokenizer), PROMPT, max_new_tokens=30, **options)
        assert len(found.ids[0]) == WINDOW - len(PROMPT)
    with pytest.raises(InputError, match="prompt of 16 tokens fills the model's window of 16"):
        generate((short, tiny_tokenizer), PROMPT + PROMPT[:7], max_new_tokens=3)


def test_a_soft_prompt_counts(short, tiny_tokenizer):
    control = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match=FULL):
        found = generate_with_control((short, tiny_tokenizer), PROMPT, control, max_new_tokens=30)
    assert len(found.ids[0]) == WINDOW - len(PROMPT) - 3
