"""Decoding with drafts that are wrong, lucky or absent: the text does not depend on them."""

import pytest
import torch

from tokenry.core.errors import InputError
from tokenry.decode.speculation.recycling import TokenRecycling
from tokenry.decode.speculation.speculate import generate_with_drafter
from tokenry.decode.speculation.tree import TokenTree

PROMPT = [5, 17, 9, 33, 21, 9, 40, 12, 3, 28, 51]


class Nothing:
    reads_prompt = False

    def begin(self, model, prompt):
        return self

    def draft(self, last_token, budget):
        return TokenTree((last_token,), (-1,))

    def update(self, tree, logits, accepted):
        pass


class Oracle(Nothing):
    """Knows the text, and hides one right path among random guesses."""

    def __init__(self, text, depth=4):
        self.text, self.depth, self.at = text, depth, 0
        self.generator = torch.Generator().manual_seed(0)

    def draft(self, last_token, budget):
        right = self.text[self.at + 1 : self.at + 1 + min(self.depth, budget)]
        tokens, parents, spine = [last_token], [-1], 0
        for token in right:
            noise = torch.randint(0, 64, (3,), generator=self.generator).tolist()
            parents += [spine] * 4
            tokens += [*noise[:2], token, noise[2]]
            spine = len(tokens) - 2
        return TokenTree(tuple(tokens), tuple(parents))

    def update(self, tree, logits, accepted):
        self.at += len(accepted.tokens)


def without_draft(model, count, **options):
    return generate_with_drafter(model, PROMPT, Nothing(), count, eos_token_id=[], **options)


def test_right_guesses_are_accepted_and_paid_once(tiny_model):
    text = without_draft(tiny_model, 31).new_ids
    found = generate_with_drafter(tiny_model, PROMPT, Oracle(text), 31, eos_token_id=[])
    assert found.new_ids == text
    assert found.accept_lengths == [5] * 6  # four guesses and a bonus token
    assert found.forward_calls == 7
    assert found.tokens_per_pass == pytest.approx(31 / 7)
    assert found.steps == 6


def test_one_generator_gives_one_text_whatever_the_draft(tiny_model):
    def run(drafter):
        options = {"temperature": 1.2, "generator": torch.Generator().manual_seed(5)}
        return generate_with_drafter(tiny_model, PROMPT, drafter, 25, eos_token_id=[], **options)

    plain = run(Nothing())
    assert run(Oracle(plain.new_ids)).ids == plain.ids
    assert run(Oracle(plain.new_ids[::-1])).ids == plain.ids
    assert run(TokenRecycling(nodes=80)).ids == plain.ids


def test_an_end_inside_the_accepted_path_cuts_it(tiny_llama):
    text = without_draft(tiny_llama, 31).new_ids
    at = next(i for i in range(8, 31) if text[i] not in text[:i] and i % 5 not in (0, 1))
    found = generate_with_drafter(tiny_llama, PROMPT, Oracle(text), 31, eos_token_id=text[at])
    assert found.new_ids == text[: at + 1]
    assert found.accept_lengths[-1] < 5


def test_ends_come_from_the_models_settings_unless_given(tiny_llama):
    text = without_draft(tiny_llama, 12).new_ids
    before = tiny_llama.generation_config.eos_token_id
    tiny_llama.generation_config.eos_token_id = text[6]
    try:
        found = generate_with_drafter(tiny_llama, PROMPT, Nothing(), 12)
    finally:
        tiny_llama.generation_config.eos_token_id = before
    assert found.new_ids == text[: text.index(text[6]) + 1]


def test_a_processor_sees_each_prefix_of_the_text_once_and_in_order(tiny_llama):
    seen = []

    def record(ids, scores):
        seen.append(ids[0].tolist())
        assert scores.shape == (1, 64)
        return scores

    text = without_draft(tiny_llama, 20).new_ids
    found = generate_with_drafter(
        tiny_llama, PROMPT, Oracle(text), 20, processors=[record], eos_token_id=[]
    )
    assert seen == [found.ids[: len(PROMPT) + at] for at in range(20)]


def test_a_guess_that_a_processor_forbids_is_rejected(tiny_llama):
    text = without_draft(tiny_llama, 20).new_ids
    banned = text[8]

    def ban(ids, scores):
        return scores.index_fill(1, torch.tensor([banned]), float("-inf"))

    expected = without_draft(tiny_llama, 20, processors=[ban])
    found = generate_with_drafter(
        tiny_llama, PROMPT, Oracle(text), 20, processors=[ban], eos_token_id=[]
    )
    assert banned not in found.new_ids
    assert found.ids == expected.ids


def test_stopping_criteria_are_asked_after_every_token(tiny_llama):
    from transformers import MaxLengthCriteria

    text = without_draft(tiny_llama, 20).new_ids
    for length in (1, 8, 9):
        stop = MaxLengthCriteria(len(PROMPT) + length)
        found = generate_with_drafter(
            tiny_llama, PROMPT, Oracle(text), 20, stopping=[stop], eos_token_id=[]
        )
        assert found.new_ids == text[:length]


def test_bad_input_is_named(tiny_llama):
    with pytest.raises(InputError, match="prompt is empty"):
        generate_with_drafter(tiny_llama, [], Nothing())
    with pytest.raises(InputError, match="got 2: use `speculate`"):
        generate_with_drafter(tiny_llama, torch.ones(2, 3, dtype=torch.long), Nothing())
    with pytest.raises(
        InputError, match=r"max_new_tokens is 0; it must be a whole number in \[1, inf\)"
    ):
        generate_with_drafter(tiny_llama, PROMPT, Nothing(), 0)


@pytest.mark.model
def test_smollm2_writes_the_text_of_generate(smollm2):
    check_real(smollm2, "def mean(values):\n    return sum(values) / len(values)\n\ndef median(")


@pytest.mark.model
def test_gemma3_writes_the_text_of_generate(gemma3):
    check_real(gemma3, "def mean(values):\n    return sum(values) / len(values)\n\ndef median(")


def check_real(loaded, prompt):
    model, tokenizer = loaded
    inputs = tokenizer(prompt, return_tensors="pt")
    with torch.no_grad():
        expected = model.generate(**inputs, max_new_tokens=16, do_sample=False)[0].tolist()
    found = generate_with_drafter(model, inputs["input_ids"], TokenRecycling(nodes=12), 16)
    assert found.ids == expected
    assert found.tokens_per_pass > 1.2
