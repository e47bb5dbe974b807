import pytest
import torch

from tokenry.core.errors import InputError
from tokenry.model.attention.masks import GivenMask
from tokenry.model.cache.full import Full, FullLayer
from tokenry.model.cache.h2o import H2O, H2OLayer
from tokenry.model.cache.per_layer import PerHead, PerLayer
from tokenry.model.cache.tokenselect import TokenSelect, TokenSelectLayer

GREEDY = {"max_new_tokens": 9, "do_sample": False, "eos_token_id": None}


def ids_of(length, batch=1, seed=1):
    return torch.randint(2, 64, (batch, length), generator=torch.Generator().manual_seed(seed))


def test_each_layer_gets_the_policy_named_for_it(tiny_llama):
    cache = PerLayer({0: H2O(), -1: TokenSelect()}).cache(tiny_llama)
    assert [type(layer) for layer in cache.layers] == [H2OLayer, FullLayer, TokenSelectLayer]
    cache = PerLayer({range(2): TokenSelect()}, default=H2O()).cache(tiny_llama)
    assert [type(layer) for layer in cache.layers] == [
        TokenSelectLayer,
        TokenSelectLayer,
        H2OLayer,
    ]


@pytest.mark.parametrize(
    "policy",
    [
        PerLayer({0: H2O(heavy=50, recent=50), 1: TokenSelect()}),
        PerHead({0: H2O(heavy=50, recent=50)}),
        PerHead({0: TokenSelect(), 1: Full()}),
        PerLayer({(0, 2): PerHead({1: TokenSelect()}, default=H2O(heavy=50, recent=50))}),
    ],
)
def test_ample_budgets_in_any_mixture_change_nothing(policy, tiny_llama):
    ids, mask = ids_of(20, batch=2), torch.ones(2, 20, dtype=torch.long)
    mask[1, :8] = 0
    plain = tiny_llama.generate(ids, attention_mask=mask, **GREEDY)
    cache = policy.cache(tiny_llama)
    found = tiny_llama.generate(ids, attention_mask=mask, past_key_values=cache, **GREEDY)
    assert torch.equal(found, plain)


@pytest.mark.parametrize("first", [H2O(heavy=3, recent=2), TokenSelect(1, 3, 2), Full()])
def test_one_policy_for_all_layers_and_heads_is_that_policy(first, tiny_model):
    """The parts of a layer see their own keys alone, so H2O and Full may be parted at will."""
    ids = ids_of(24)
    heads = tiny_model.config.num_key_value_heads
    policies = [first, PerLayer({}, default=first), PerHead({tuple(range(heads)): first})]
    if not isinstance(first, TokenSelect):  # whose heads vote together
        policies.append(PerHead(dict.fromkeys(range(heads), first)))
    texts = [
        tiny_model.generate(ids, past_key_values=policy.cache(tiny_model), **GREEDY)
        for policy in policies
    ]
    assert all(torch.equal(text, texts[0]) for text in texts)


def test_heads_have_budgets_of_their_own(tiny_llama):
    cache = PerHead({0: H2O(heavy=2, recent=1), 1: H2O(heavy=4, recent=5)}).cache(tiny_llama)
    ids = ids_of(24)
    tiny_llama.generate(ids, past_key_values=cache, **GREEDY)
    for layer in cache.layers:
        assert [part.keys.shape[1:3] for _, part in layer.parts] == [(1, 3), (1, 9)]


@pytest.mark.parametrize("policies", [(TokenSelect(1, 3, 2), TokenSelect(2, 9, 5)), (H2O(3, 2),)])
def test_a_head_under_its_policy_is_that_head_alone(policies, tiny_llama):
    """Query heads go with their key head, and come back to their places."""
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(1, h, 40, 8, generator=generator) for h in (6, 2, 2)]
    both = PerHead(dict(enumerate(policies))).layer()
    alone = [*(policy.layer() for policy in policies), FullLayer()][:2]
    for start, stop in [(0, 20), *((t, t + 1) for t in range(20, 40))]:
        query, key, value = (s[:, :, start:stop] for s in states)
        found = attend(both, query, key, value)
        for head, layer in enumerate(alone):
            part = slice(3 * head, 3 * head + 3)
            one = slice(head, head + 1)
            expected = attend(layer, query[:, part], key[:, one], value[:, one])
            torch.testing.assert_close(found[:, :, part], expected)


def attend(layer, query, key, value):
    keys, values = layer.update(key, value)
    options = {"scaling": 0.5, "softcap": None, "dropout": 0.0}
    output = layer.attend(query, keys, values, GivenMask(None, query), **options)
    layer.waiting = False
    return output


def test_a_mixture_can_be_taken_back_where_all_its_parts_can(tiny_llama):
    ids = ids_of(20)
    for policy, croppable in (
        (PerHead({0: TokenSelect(1, 3, 2)}), True),
        (PerHead({0: H2O(heavy=2, recent=2)}), False),
    ):
        cache = policy.cache(tiny_llama)
        assert cache.is_croppable == croppable
        with torch.no_grad():
            tiny_llama(ids, past_key_values=cache)
        assert cache.is_croppable == croppable
    mixed = PerHead({0: TokenSelect(1, 3, 2)}).cache(tiny_llama)
    with torch.no_grad():
        tiny_llama(ids, past_key_values=mixed)
        mixed.crop(-4)
        again = tiny_llama(ids[:, 16:], past_key_values=mixed).logits
        fresh = PerHead({0: TokenSelect(1, 3, 2)}).cache(tiny_llama)
        tiny_llama(ids[:, :16], past_key_values=fresh)
        expected = tiny_llama(ids[:, 16:], past_key_values=fresh).logits
    torch.testing.assert_close(again, expected, atol=1e-5, rtol=1e-5)


def test_beams_carry_the_state_of_every_part(tiny_llama):
    ids = ids_of(20)
    plain = tiny_llama.generate(ids, num_beams=3, **GREEDY)
    cache = PerHead({0: TokenSelect(), 1: H2O(heavy=50, recent=50)}).cache(tiny_llama)
    found = tiny_llama.generate(ids, num_beams=3, past_key_values=cache, **GREEDY)
    assert torch.equal(found, plain)


def test_layers_and_heads_that_are_not_there_are_named(tiny_llama, tiny_gemma3):
    with pytest.raises(InputError, match="no layer 3"):
        PerLayer({3: Full()}).cache(tiny_llama)
    with pytest.raises(InputError, match="two policies"):
        PerLayer({range(2): Full(), 1: H2O()}).cache(tiny_llama)
    with pytest.raises(InputError, match="no head 2"):
        PerHead({2: Full()}).cache(tiny_llama)
    with pytest.raises(InputError, match=r"layers \[0\] do not have full attention.*\[3\]"):
        PerLayer({0: H2O()}).cache(tiny_gemma3)
