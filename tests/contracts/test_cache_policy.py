"""Every registered cache policy: ample budgets change nothing, tight ones hold, rows do not mix.

A policy is a dataclass with `cache(model)` and `of_size(size)`.
"""

import pytest
import torch

from role_cases import cases
from tokenry.core.errors import InputError, TokenryError
from tokenry.model.cache.policy import cache_policy

NEW = 9
GREEDY = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None}


@pytest.fixture(params=cases(cache_policy))
def example(request):
    return request.param()


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(2, 64, (3, 20), generator=generator)
    attention = torch.ones_like(ids)
    attention[1, :7] = 0
    attention[2, :13] = 0
    return ids * attention, attention


def new_tokens(model, ids, attention, cache=None, **options):
    options = GREEDY | options
    with torch.no_grad():
        out = model.generate(ids, attention_mask=attention, past_key_values=cache, **options)
    return out[:, -NEW:]


def test_a_full_budget_reproduces_greedy_generation_exactly(example, tiny_model, inputs):
    plain = new_tokens(tiny_model, *inputs)
    bounded = new_tokens(tiny_model, *inputs, example.ample.cache(tiny_model))
    assert torch.equal(bounded, plain)


def test_a_full_budget_reproduces_the_logits_of_every_step(example, tiny_model, inputs):
    ids, attention = inputs
    with torch.no_grad():
        tiny_model.set_attn_implementation("eager")
        expected = tiny_model(ids, attention_mask=attention).logits[:, -4:]
        cache = example.ample.cache(tiny_model)
        steps = [tiny_model(ids[:, :17], attention_mask=attention[:, :17], past_key_values=cache)]
        for end in range(18, 21):
            step = {"attention_mask": attention[:, :end], "past_key_values": cache}
            steps.append(tiny_model(ids[:, end - 1 : end], **step))
    found = torch.cat([step.logits[:, -1:] for step in steps], dim=1)
    # position ids of the full forward count padding too, so only the unpadded row is compared
    torch.testing.assert_close(found[:1], expected[:1], atol=1e-4, rtol=1e-4)


def test_switching_the_attention_leaves_plain_generation_alone(example, tiny_model, inputs):
    before = new_tokens(tiny_model, *inputs)
    example.tight.cache(tiny_model)
    assert torch.equal(new_tokens(tiny_model, *inputs), before)


@pytest.mark.parametrize("setting", ["tight", "shares"])
def test_a_row_of_a_left_padded_batch_equals_that_row_alone(example, tiny_model, inputs, setting):
    ids, attention = inputs
    together = new_tokens(tiny_model, *inputs, getattr(example, setting).cache(tiny_model))
    for row in range(len(ids)):
        alone = ids[row : row + 1, attention[row].bool()]
        cache = getattr(example, setting).cache(tiny_model)
        found = new_tokens(tiny_model, alone, torch.ones_like(alone), cache)
        assert torch.equal(found[0], together[row])


def test_an_evicting_policy_keeps_to_its_budget_and_the_others_keep_everything(
    example, tiny_model, inputs
):
    ids, attention = inputs
    chosen = example.tight
    cache = chosen.cache(tiny_model)
    bounded = [n for n, sliding in enumerate(cache.is_sliding) if not sliding]
    assert bounded
    with torch.no_grad():
        tiny_model(ids, attention_mask=attention, past_key_values=cache)
        for step in range(1, 6):
            held = {states.shape[-2] for n in bounded for states in held_by(cache.layers[n])}
            assert max(held) <= example.kept if example.kept else held == {19 + step}
            assert cache.get_seq_length() == 19 + step  # positions go on counting evicted tokens
            attention = torch.cat([attention, torch.ones(3, 1, dtype=torch.long)], dim=1)
            one = torch.full((3, 1), 5)
            tiny_model(one, attention_mask=attention, past_key_values=cache)


def held_by(layer):
    return layer.keys, layer.values


def test_a_tight_budget_changes_what_is_generated(example, tiny_llama, inputs):
    if example.tight == example.ample:
        pytest.skip("has no budget")
    ids, attention = inputs[0][:1], inputs[1][:1]
    cache = example.tight.cache(tiny_llama)
    with torch.no_grad():
        tiny_llama(ids, attention_mask=attention, past_key_values=cache)
        found = tiny_llama(torch.tensor([[5]]), past_key_values=cache).logits[0, -1]
        expected = tiny_llama(torch.cat([ids, torch.tensor([[5]])], dim=1)).logits[0, -1]
    assert (found - expected).abs().max() > 1e-2


def test_beam_search_with_a_full_budget_equals_beam_search(example, tiny_model, inputs):
    plain = new_tokens(tiny_model, *inputs, num_beams=3)
    bounded = new_tokens(tiny_model, *inputs, example.ample.cache(tiny_model), num_beams=3)
    assert torch.equal(bounded, plain)


def test_reordering_rows_carries_all_of_their_state(example, tiny_model, inputs):
    """After a tight prefill, swapped rows must go on as the rows they came from."""
    ids, attention = inputs
    order = torch.tensor([2, 0, 0, 1])
    one = torch.full((3, 1), 5)
    more = torch.cat([attention, torch.ones(3, 1, dtype=torch.long)], dim=1)
    position = attention.sum(1, keepdim=True)
    logits = []
    with torch.no_grad():
        for reorder in (False, True):
            cache = example.tight.cache(tiny_model)
            tiny_model(ids, attention_mask=attention, past_key_values=cache)
            pick = order if reorder else torch.arange(3)
            if reorder:
                cache.reorder_cache(order)
            for step in range(3):
                grown = torch.cat([more, torch.ones(3, step, dtype=torch.long)], dim=1)
                output = tiny_model(
                    one[pick],
                    attention_mask=grown[pick],
                    position_ids=position[pick] + step,
                    past_key_values=cache,
                )
            logits.append(output.logits[:, -1])
    torch.testing.assert_close(logits[1], logits[0][order], atol=1e-5, rtol=1e-5)


def test_tokens_are_taken_back_without_a_trace_or_not_at_all(example, tiny_llama, inputs):
    ids, after = inputs[0][:1], torch.tensor([[5]])
    cache = example.tight.cache(tiny_llama)
    assert cache.is_croppable == (example.kept is None)
    with torch.no_grad():
        tiny_llama(ids, past_key_values=cache)
        if example.kept:
            with pytest.raises(TokenryError, match="evicted"):
                cache.crop(-1)
            return
        cache.crop(-3)
        found = tiny_llama(after, past_key_values=cache).logits
        fresh = example.tight.cache(tiny_llama)
        tiny_llama(ids[:, :-3], past_key_values=fresh)
        expected = tiny_llama(after, past_key_values=fresh).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [16, 0.5])
def test_a_size_makes_a_policy_that_runs(example, size, tiny_llama, inputs):
    made = type(example.tight)
    if example.tight == example.ample:
        with pytest.raises(InputError, match="no size"):
            made.of_size(size)
        return
    assert new_tokens(tiny_llama, *inputs, made.of_size(size).cache(tiny_llama)).shape == (3, NEW)
    for wrong in (0, -1, 1.5):
        with pytest.raises(InputError):
            made.of_size(wrong)


def test_a_reset_cache_starts_again(example, tiny_model, inputs):
    cache = example.tight.cache(tiny_model)
    first = new_tokens(tiny_model, *inputs, cache)
    cache.reset()
    assert cache.get_seq_length() == 0
    assert torch.equal(new_tokens(tiny_model, *inputs, cache), first)
