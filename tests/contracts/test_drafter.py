"""What every drafter must keep: the text is the one that decoding without it gives.

Greedy text equals `model.generate`; sampled text equals `model.generate` with the same seed, draw
by draw (more than the same distribution); ends, limits and processors hold; trees keep to their
budget.
"""

import copy
import math
from dataclasses import fields

import pytest
import torch

from role_cases import cases
from tokenry.core.errors import InputError
from tokenry.decode.speculation.speculate import drafter as drafters
from tokenry.decode.speculation.speculate import generate_with_drafter

PROMPTS = [
    torch.randint(2, 64, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    for length in (1, 5, 19)
]
NEW = 24


@pytest.fixture(params=cases(drafters))
def drafter(request):
    return request.param()


@pytest.fixture(scope="session")
def exact_model(tiny_model):
    """In float64 two logits do not tie by rounding."""
    return copy.deepcopy(tiny_model).double()


def plain(model, prompt, **options):
    options = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None} | options
    ids = torch.tensor([prompt])
    with torch.no_grad():
        return model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0].tolist()


@pytest.mark.parametrize("prompt", PROMPTS, ids=len)
def test_greedy_text_is_that_of_generate(drafter, tiny_model, exact_model, prompt):
    for model in (tiny_model, exact_model):
        expected = plain(model, prompt)
        for _ in range(2):  # cold, and with what it has learned
            found = generate_with_drafter(model, prompt, drafter, NEW, eos_token_id=[])
            assert found.ids == expected


def test_the_text_ends_where_generate_ends_it(drafter, tiny_model):
    prompt = PROMPTS[1]
    text = plain(tiny_model, prompt)[len(prompt) :]
    for at in (0, 5, 11):
        ends = [text[at], 63]
        expected = plain(tiny_model, prompt, eos_token_id=ends)
        found = generate_with_drafter(tiny_model, prompt, drafter, NEW, eos_token_id=ends)
        assert found.ids == expected


def test_no_token_more_than_allowed(drafter, tiny_model):
    expected = plain(tiny_model, PROMPTS[2])
    for limit in (1, 2, 3, 7, NEW):
        found = generate_with_drafter(tiny_model, PROMPTS[2], drafter, limit, eos_token_id=[])
        assert found.ids == expected[: len(PROMPTS[2]) + limit]
        assert found.steps == len(found.nodes) < found.forward_calls
        assert sum(found.accept_lengths) == limit - 1  # the first comes with the prompt's pass


@pytest.mark.parametrize("options", [{}, {"temperature": 0.6}, {"temperature": 1.3, "top_p": 0.7}])
def test_sampled_text_is_that_of_generate_with_the_same_seed(drafter, tiny_model, options):
    options = {"temperature": 1.0} | options
    for seed in range(3):
        torch.manual_seed(seed)
        expected = plain(tiny_model, PROMPTS[1], do_sample=True, top_k=0, **options)
        found = generate_with_drafter(
            tiny_model,
            PROMPTS[1],
            drafter,
            NEW,
            eos_token_id=[],
            generator=torch.Generator().manual_seed(seed),
            **options,
        )
        assert found.ids == expected


def test_processors_steer_as_they_do_in_generate(drafter, tiny_model):
    from transformers import NoRepeatNGramLogitsProcessor, RepetitionPenaltyLogitsProcessor

    steering = [RepetitionPenaltyLogitsProcessor(1.4), NoRepeatNGramLogitsProcessor(2)]
    expected = plain(tiny_model, PROMPTS[2], repetition_penalty=1.4, no_repeat_ngram_size=2)
    assert expected != plain(tiny_model, PROMPTS[2])
    for _ in range(2):
        found = generate_with_drafter(
            tiny_model, PROMPTS[2], drafter, NEW, processors=steering, eos_token_id=[]
        )
        assert found.ids == expected


def test_trees_start_at_the_last_token_and_stay_in_their_budget(drafter, tiny_model):
    seen = []
    found = generate_with_drafter(
        tiny_model,
        PROMPTS[0],
        drafter,
        NEW,
        eos_token_id=[],
        on_step=lambda tree, accepted: seen.append((tree, accepted)),
    )
    done = len(PROMPTS[0]) + 1
    for tree, accepted in seen:
        assert tree.tokens[0] == found.ids[done - 1]
        assert max(tree.depths) <= max(0, len(found.ids) - done - 1) + 1
        assert accepted.tokens == found.ids[done : done + len(accepted.tokens)]
        done += len(accepted.tokens)
    assert done == len(found.ids)


NUMBERS = [
    (name, one.name, "int" in str(one.type))
    for name in drafters.names()
    for one in fields(drafters[name])
    if one.init and any(kind in str(one.type) for kind in ("int", "float"))
]


@pytest.mark.parametrize(("name", "setting", "whole"), NUMBERS)
def test_a_number_outside_its_range_is_refused_by_name(name, setting, whole):
    for value in (math.nan, math.inf, -math.inf, -1, "3", True, *([1.5] if whole else [])):
        with pytest.raises(InputError, match=f"{setting} is .*; it must be a"):
            drafters[name](**{setting: value})
