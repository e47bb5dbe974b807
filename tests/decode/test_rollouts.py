"""Rollouts against the model's own exact next-token probabilities."""

import pytest
import torch

from tokenry.core.errors import InputError
from tokenry.decode.rollouts import rollouts

END = 4


@pytest.fixture(scope="module")
def model():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=5,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.6,
    )
    return LlamaForCausalLM(config).eval()


@torch.no_grad()
def exact(model, ids):
    return model(torch.tensor([ids])).logits[0, -1].softmax(-1)


def shares(tokens, size=5):
    return torch.bincount(torch.tensor(tokens), minlength=size) / len(tokens)


def test_every_prompt_gets_its_own_models_distribution_whatever_stands_beside_it(model):
    prompts = [[1], [2, 3, 0, 1], [3, 3]]
    found = rollouts(model, prompts, 3000, max_new_tokens=2, ends=[END], rows_per_batch=4000)
    for prompt, completions in zip(prompts, found, strict=True):
        assert len(completions) == 3000
        probabilities = exact(model, prompt)
        torch.testing.assert_close(
            shares([text[0] for text in completions]), probabilities, atol=0.04, rtol=0
        )
        likeliest = int(probabilities[:END].argmax())
        after = [text[1] for text in completions if text[0] == likeliest]
        torch.testing.assert_close(
            shares(after), exact(model, [*prompt, likeliest]), atol=0.06, rtol=0
        )


def test_completions_stop_at_an_end_or_at_the_limit(model):
    for (text,) in rollouts(model, [[1]] * 200, max_new_tokens=6, ends=[END], rows_per_batch=64):
        assert END not in text[:-1]
        assert text[-1] == END or len(text) == 6
    (free,) = rollouts(model, [[1]], 50, max_new_tokens=6)
    assert {len(text) for text in free} == {6}


def test_a_banned_token_is_never_first_and_the_rest_keeps_its_proportions(model):
    likeliest = int(exact(model, [2, 1]).argmax())
    found = rollouts(model, [[2, 1], [2, 1]], 3000, max_new_tokens=2, banned=[likeliest, None])
    rest = exact(model, [2, 1])
    torch.testing.assert_close(shares([text[0] for text in found[1]]), rest, atol=0.04, rtol=0)
    rest[likeliest] = 0.0
    torch.testing.assert_close(
        shares([text[0] for text in found[0]]), rest / rest.sum(), atol=0.04, rtol=0
    )
    assert likeliest in {text[1] for text in found[0]}


def test_the_seed_decides(model):
    first, again, other = (
        rollouts(model, [[1], [2, 2]], 8, max_new_tokens=5, seed=seed) for seed in (3, 3, 4)
    )
    assert first == again != other


def test_a_low_temperature_takes_the_likeliest_token(model):
    (found,) = rollouts(model, [[1, 2]], 20, max_new_tokens=1, temperature=1e-3)
    assert {text[0] for text in found} == {int(exact(model, [1, 2]).argmax())}


def test_what_cannot_be_is_refused(model):
    with pytest.raises(InputError, match="temperature"):
        rollouts(model, [[1]], max_new_tokens=1, temperature=0.0)
    with pytest.raises(InputError, match="empty"):
        rollouts(model, [[1], []], max_new_tokens=1)
    with pytest.raises(InputError, match="1 banned tokens for 2"):
        rollouts(model, [[1], [2]], max_new_tokens=1, banned=[0])
