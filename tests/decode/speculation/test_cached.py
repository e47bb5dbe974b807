"""Drafts on a cache policy: a full budget changes nothing, a small one goes on without an error."""

import pytest
import torch

from tokenry.decode.speculation.baselines import NoDraft
from tokenry.decode.speculation.goose import Goose
from tokenry.decode.speculation.speculate import generate_with_drafter
from tokenry.model.cache.full import Full
from tokenry.model.cache.policy import cache_policy
from tokenry.model.cache.tokenselect import TokenSelect

PROMPT = torch.randint(2, 64, (40,), generator=torch.Generator().manual_seed(1)).tolist()
NEW = 40  # beyond the tiny Gemma's sliding window


def text(model, drafter, policy=None, **options):
    cache = None if policy is None else policy.cache(model)
    found = generate_with_drafter(
        model, PROMPT, drafter, NEW, eos_token_id=[], cache=cache, **options
    )
    return found.new_ids


@pytest.mark.parametrize("policy", [Full(), TokenSelect(), TokenSelect.of_size(1000)])
def test_a_full_budget_leaves_drafted_text_as_it_is(tiny_model, policy):
    plain = text(tiny_model, NoDraft())
    warm = Goose()
    for _ in range(2):
        assert text(tiny_model, warm, policy) == plain


def test_without_guesses_it_is_what_generate_does_on_that_cache(tiny_model):
    policy = TokenSelect.of_size(16)
    ids = torch.tensor([PROMPT])
    expected = tiny_model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW,
        do_sample=False,
        eos_token_id=None,
        past_key_values=policy.cache(tiny_model),
    )[0, len(PROMPT) :].tolist()
    assert text(tiny_model, NoDraft(), policy) == expected


def test_a_small_budget_goes_through_trees_and_rejections(tiny_model):
    warm = Goose(nodes=12)
    for temperature in (0.0, 1.0):
        generator = torch.Generator().manual_seed(0)
        options = {"temperature": temperature, "generator": generator}
        assert len(text(tiny_model, warm, TokenSelect.of_size(16), **options)) == NEW


def test_every_policy_either_goes_with_a_draft_or_says_why_not(tiny_model):
    from tokenry.core.errors import InputError

    for name in cache_policy.names():
        policy = cache_policy[name]()
        if all(layer.is_croppable for layer in policy.cache(tiny_model).layers[-1:]):
            assert len(text(tiny_model, Goose(), policy)) == NEW
        else:
            with pytest.raises(InputError, match="evicts"):
                text(tiny_model, Goose(), policy)
