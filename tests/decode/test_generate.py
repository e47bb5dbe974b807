"""generate: prompts, samplers by name, errors; on tiny models and shortly on a real one."""

import json
import math

import pytest
import torch

from tokenry.core.errors import ConstraintError, InputError, UnknownNameError
from tokenry.decode.constraints.grammar import Grammar
from tokenry.decode.constraints.predicate import Predicate
from tokenry.decode.generate import generate, prompt_ids
from tokenry.decode.samplers.awrs import AWRS


@pytest.fixture(scope="module")
def loaded(tiny_llama_text, tiny_tokenizer):
    return tiny_llama_text, tiny_tokenizer


@pytest.mark.parametrize("sampler", ["awrs", "mask", "greedy", AWRS(max_accepts=3)], ids=str)
def test_every_text_satisfies_the_constraint(loaded, sampler):
    digits = Grammar.regex("[0-9]{3}", loaded[1])
    samples = generate(loaded, "the cat", digits, sampler, particles=4, max_new_tokens=8)
    assert all(samples.finished)
    assert all(len(text) == 3 and text.isdecimal() for text in samples.texts)
    assert math.isfinite(samples.log_evidence)
    if sampler in ("mask", "greedy"):
        assert samples.weights.tolist() == [0.25] * 4
    assert math.isclose(sum(samples.distribution().values()), 1.0)


def test_weights_are_the_models_own_probabilities(loaded):
    """Where the constraint leaves two texts, their shares approach those of the model."""
    model, tokenizer = loaded
    digits = [tokenizer.convert_tokens_to_ids(digit) for digit in "27"]
    choice = Grammar.regex("[27]", tokenizer)
    prompt = prompt_ids(tokenizer, "the cat")

    def logprob(ids):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + ids])).logits[0].float()
        after = logits[len(prompt) - 1 : -1].log_softmax(-1)
        return float(after.gather(1, torch.tensor(ids)[:, None]).sum())

    exact = {d: logprob([t, tokenizer.eos_token_id]) for d, t in zip("27", digits, strict=True)}
    evidence = math.log(sum(map(math.exp, exact.values())))
    found = generate(loaded, "the cat", choice, "awrs", particles=4000, max_new_tokens=3)
    shares = found.distribution()
    for digit, value in exact.items():
        # a share of 4000 weighted draws; 0.1 is more than ten standard errors of an equal vote
        assert abs(shares[digit] - math.exp(value - evidence)) < 0.1
    assert abs(found.log_evidence - evidence) < 0.3


def test_greedy_without_a_constraint_equals_the_models_own(loaded):
    model, tokenizer = loaded
    prompt = prompt_ids(tokenizer, "the dog sat")
    exact = model.generate(
        torch.tensor([prompt]), max_new_tokens=10, do_sample=False, eos_token_id=1, pad_token_id=0
    )
    samples = generate(loaded, prompt, sampler="greedy", max_new_tokens=10)
    expected = exact[0, len(prompt) :].tolist()
    assert samples.ids[0] == [token for token in expected if token != 1]


def test_a_prompt_is_a_text_ids_or_messages(tiny_tokenizer):
    ids = tiny_tokenizer.encode("the cat")
    assert prompt_ids(tiny_tokenizer, "the cat") == prompt_ids(tiny_tokenizer, ids) == ids
    chat = prompt_ids(tiny_tokenizer, [{"role": "user", "content": "the cat"}])
    assert tiny_tokenizer.decode(chat).startswith("<|user|>\nthe cat")
    assert tiny_tokenizer.decode(chat).endswith("<|assistant|>\n")
    for empty in ("", []):
        with pytest.raises(InputError, match="empty"):
            prompt_ids(tiny_tokenizer, empty)


def test_a_dead_end_names_the_text(loaded):
    stuck = Predicate(lambda text: text in ("a", "ab"), lambda _: False, loaded[1])
    with pytest.raises(ConstraintError, match=r"dead end|no token satisfies"):
        generate(loaded, "the", stuck, particles=2)


def test_an_unknown_sampler_is_named(loaded):
    with pytest.raises(UnknownNameError, match="awrs"):
        generate(loaded, "the", sampler="awsr")


@pytest.mark.model
def test_a_real_model_writes_json_under_a_schema(smollm2):
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}},
        "required": ["city"],
        "additionalProperties": False,
    }
    grammar = Grammar.json_schema(schema, smollm2.tokenizer, whitespace=" ?")
    chat = [{"role": "user", "content": "Name a city as JSON with the field city."}]
    samples = generate(smollm2, chat, grammar, particles=3, max_new_tokens=20, seed=0)
    done = [t for t, ended in zip(samples.texts, samples.finished, strict=True) if ended]
    assert done
    assert all(list(json.loads(text)) == ["city"] for text in done)
    assert samples.checks_per_token < 10
