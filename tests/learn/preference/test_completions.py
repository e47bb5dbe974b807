"""Sampled completions: each belongs to its prompt, ends at the end token, can be drawn again."""

import pytest
import torch

from tokenry.core.errors import InputError
from tokenry.learn.preference.completions import sample_completions


def test_each_completion_is_of_its_own_prompt(tiny_tokenizer, tiny_llama_text):
    prompts = [tiny_tokenizer(text)["input_ids"] for text in ("the cat sat on", "a", "there is")]
    found = sample_completions(
        tiny_llama_text,
        tiny_tokenizer,
        prompts,
        2,
        max_new_tokens=4,
        temperature=1e-4,  # as good as greedy
        batch_size=4,
    )
    for prompt, completions in zip(prompts, found, strict=True):
        expected: list[int] = []
        while len(expected) < 4 and tiny_tokenizer.eos_token_id not in expected:
            with torch.no_grad():
                logits = tiny_llama_text(torch.tensor([[*prompt, *expected]])).logits[0, -1]
            expected.append(int(logits.argmax()))
        assert completions == [expected, expected]


def test_the_seed_decides_and_the_global_generator_is_left_alone(tiny_tokenizer, tiny_llama_text):
    prompts = [tiny_tokenizer("the dog")["input_ids"]]

    def draw(seed):
        options = {"max_new_tokens": 8, "seed": seed}
        return sample_completions(tiny_llama_text, tiny_tokenizer, prompts, 3, **options)

    state = torch.get_rng_state()
    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    assert torch.equal(torch.get_rng_state(), state)


def test_without_a_model_nothing_can_be_sampled(tiny_tokenizer):
    with pytest.raises(InputError, match="model"):
        sample_completions(None, tiny_tokenizer, [[1]], 1)
