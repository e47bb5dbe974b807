import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import DynamicCache

from tokenry.core.errors import InputError, ModelError
from tokenry.model.attention import dense as attention_module
from tokenry.model.attention.dense import attend_in_chunks
from tokenry.model.cache.h2o import H2O, H2OLayer, keep_heavy_and_recent
from tokenry.model.cache.policy import PolicyCache, tokens
from tokenry.model.cache.simulation import SimulatedCache


def layer_with(heavy, recent):
    """A layer fed with attention rows by hand, one key head, one-dimensional keys."""
    return H2OLayer(H2O(heavy=heavy, recent=recent))


def feed(layer, row):
    """One new token that gives the keys kept, itself last, the attention `row`."""
    state = torch.full((1, 1, 1, 1), float(layer.seen))
    layer.update(state, state)
    layer.waiting = False
    layer.observe(torch.tensor([[row]]), torch.ones(1, 1, dtype=torch.bool))


def test_worked_case_keeps_the_first_token_and_the_newest():
    layer = layer_with(heavy=1, recent=1)
    feed(layer, [1.0])
    feed(layer, [0.7, 0.3])
    torch.testing.assert_close(layer.score, torch.tensor([[[1.7, 0.3]]]))
    assert layer.position.tolist() == [[[0, 1]]]
    feed(layer, [0.5, 0.1, 0.4])
    torch.testing.assert_close(layer.score, torch.tensor([[[2.2, 0.4]]]))
    assert layer.position.tolist() == [[[0, 2]]]
    assert layer.keys.flatten().tolist() == [0.0, 2.0]


def test_the_average_forgives_late_tokens_that_few_queries_saw():
    layer = H2OLayer(H2O(heavy=1, recent=1, average=True))
    feed(layer, [1.0])
    feed(layer, [0.4, 0.6])
    feed(layer, [0.2, 0.5, 0.3])  # sums 1.6 and 1.1, means 1.6 / 3 and 1.1 / 2
    assert layer.position.tolist() == [[[1, 2]]]
    feed(layer, [0.1, 0.3, 0.6])  # sums 1.2 and 0.6, means 1.2 / 3 and 0.6 / 2
    assert layer.position.tolist() == [[[1, 3]]]
    assert layer.queries.tolist() == [[[3, 1]]]


def test_the_average_counts_queries_that_are_tokens(tiny_llama):
    ids, mask = ids_of(12), torch.ones(1, 12, dtype=torch.long)
    mask[0, :4] = 0
    padded, plain = (H2O(heavy=3, recent=2, average=True).cache(tiny_llama) for _ in range(2))
    with torch.no_grad():
        tiny_llama(ids, attention_mask=mask, past_key_values=padded)
        tiny_llama(ids[:, 4:], past_key_values=plain)
    for left, right in zip(padded.layers, plain.layers, strict=True):
        assert torch.equal(left.position - 4, right.position)
        assert torch.equal(left.queries, right.queries)
        assert right.queries.tolist() == (8 - right.position).tolist()


def test_the_observed_attention_press_is_one_setting(tiny_llama):
    """The prompt's keys of the largest mean attention, and all that is written later."""
    ids = ids_of(20, batch=2)
    cache = H2O(heavy=4, recent=0, average=True, prompt_only=True).cache(tiny_llama)
    with torch.no_grad():
        tiny_llama(ids[:, :12], past_key_values=cache)
        for t in range(12, 20):
            tiny_llama(ids[:, t : t + 1], past_key_values=cache)
        tiny_llama.set_attn_implementation("eager")
        eager = tiny_llama(ids[:, :12], output_attentions=True).attentions
    for layer, probability in zip(cache.layers, eager, strict=True):
        mean = probability.sum(2).view(2, 2, 2, 12).sum(2) / torch.arange(12, 0, -1)
        best = mean.topk(4).indices.sort(-1).values
        later = torch.arange(12, 20).expand(2, 2, -1)
        assert torch.equal(layer.position.long(), torch.cat([best, later], dim=-1))
        assert layer.kept.all()


def brute_force(score, stored, heavy, recent):
    kept = [j for j in range(len(score)) if stored[j]]
    newest = kept[max(len(kept) - recent, 0) :]
    rest = [j for j in kept if j not in newest]
    best = sorted(rest, key=lambda j: (-score[j], j))[:heavy]
    return [j in newest or j in best for j in range(len(score))]


@given(
    st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=9),
    st.integers(0, 5),
    st.integers(0, 5),
)
def test_keeps_the_newest_and_the_best_of_the_others(rows, heavy, recent):
    score = torch.tensor([[[float(s) for s, _ in rows]]])
    stored = torch.tensor([[[h for _, h in rows]]])
    kept = keep_heavy_and_recent(score, stored, torch.tensor([heavy]), torch.tensor([recent]))
    expected = brute_force([s for s, _ in rows], [h for _, h in rows], heavy, recent)
    assert kept[0, 0].tolist() == expected


def test_each_row_of_a_batch_has_its_own_budget():
    score = torch.tensor([[5.0, 4.0, 3.0, 2.0]]).expand(2, 1, 4)
    stored = torch.ones(2, 1, 4, dtype=torch.bool)
    kept = keep_heavy_and_recent(score, stored, torch.tensor([1, 2]), torch.tensor([1, 1]))
    assert kept[:, 0].tolist() == [[True, False, False, True], [True, True, False, True]]


def test_budgets_are_counts_or_shares_of_each_prompt():
    length = torch.tensor([100, 7, 3])
    assert tokens(12, length).tolist() == [12, 12, 12]
    assert tokens(0.29, length).tolist() == [29, 2, 1]  # floor, but at least one
    assert tokens(0.0, length).tolist() == [0, 0, 0]
    assert tokens(1.0, length).tolist() == [100, 7, 3]


@pytest.mark.parametrize("budget", [{"heavy": -1}, {"recent": 1.5}, {"heavy": 0, "recent": 0.0}])
def test_impossible_budgets_are_refused(budget):
    with pytest.raises(InputError):
        H2O(**budget)


def ids_of(length, batch=1, seed=1):
    return torch.randint(2, 64, (batch, length), generator=torch.Generator().manual_seed(seed))


def step_by_step(model, ids, prompt, cache):
    """Logits at ids[prompt - 1:], tokens fed one by one after the prompt; positions per step."""
    outputs, states = [], []
    with torch.no_grad():
        for start, end in [(0, prompt), *((t, t + 1) for t in range(prompt, ids.shape[1]))]:
            outputs.append(model(ids[:, start:end], past_key_values=cache).logits[:, -1])
            states.append([layer.position for layer in cache.layers if hasattr(layer, "position")])
    return torch.stack(outputs, dim=1), states


def test_scores_sum_to_the_number_of_query_rows(tiny_llama):
    """Each query of each of a group's two heads hands out one unit of attention."""
    cache = H2O(heavy=100, recent=100).cache(tiny_llama)
    ids = ids_of(11)
    with torch.no_grad():
        tiny_llama(ids[:, :8], past_key_values=cache)
        tiny_llama(ids[:, 8:], past_key_values=cache)
    for layer in cache.layers:
        torch.testing.assert_close(layer.score.sum(-1), torch.full((1, 2), 11.0 * 2))


def test_scores_are_the_eager_attention_summed_over_queries_and_group(tiny_llama):
    ids = ids_of(9)
    cache = H2O(heavy=100, recent=100).cache(tiny_llama)
    with torch.no_grad():
        tiny_llama(ids, past_key_values=cache)
        tiny_llama.set_attn_implementation("eager")
        eager = tiny_llama(ids, output_attentions=True).attentions
    for layer, probability in zip(cache.layers, eager, strict=True):
        expected = probability.sum(2).view(1, 2, 2, 9).sum(2)  # two query heads per key head
        torch.testing.assert_close(layer.score, expected)


def test_padding_gives_and_receives_no_score(tiny_llama):
    ids, mask = ids_of(10), torch.ones(1, 10, dtype=torch.long)
    mask[0, :4] = 0
    cache = H2O(heavy=100, recent=100).cache(tiny_llama)
    with torch.no_grad():
        tiny_llama(ids, attention_mask=mask, past_key_values=cache)
    for layer in cache.layers:
        assert layer.score[..., :4].abs().max() == 0
        assert not layer.kept[..., :4].any()
        torch.testing.assert_close(layer.score.sum(-1), torch.full((1, 2), 6.0 * 2))


def test_right_padding_gives_no_score_either(tiny_llama):
    ids, mask = ids_of(10), torch.ones(1, 10, dtype=torch.long)
    mask[0, 7:] = 0
    cache = H2O(heavy=2, recent=2).cache(tiny_llama)
    with torch.no_grad():
        tiny_llama(ids, attention_mask=mask, past_key_values=cache)
    for layer in cache.layers:
        assert layer.kept.sum(-1).unique().tolist() == [4]
        assert layer.position[layer.kept].max() == 6


def test_padding_is_dropped_before_any_token(tiny_llama):
    ids, mask = ids_of(12), torch.ones(1, 12, dtype=torch.long)
    mask[0, :6] = 0
    cache = H2O(heavy=3, recent=3).cache(tiny_llama)
    with torch.no_grad():
        tiny_llama(ids, attention_mask=mask, past_key_values=cache)
    for layer in cache.layers:
        assert layer.kept.all()
        assert layer.position[0, 0].tolist() == [6, 7, 8, 9, 10, 11]


def test_eviction_is_for_ever_and_one_token_enters_per_step(tiny_llama):
    ids = ids_of(24, seed=5)
    _, states = step_by_step(tiny_llama, ids, 8, H2O(heavy=3, recent=2).cache(tiny_llama))
    evicted = 0
    for layer in range(3):
        for head in range(2):
            sets = [set(state[layer][0, head].tolist()) for state in states]
            for step, (before, after) in enumerate(pairwise(sets)):
                assert after - before == {8 + step}
                assert len(after) == 5
                evicted += len(before - after)
    assert evicted == 16 * 6


def test_heads_choose_for_themselves(tiny_llama):
    _, states = step_by_step(
        tiny_llama, ids_of(24, seed=5), 8, H2O(heavy=3, recent=2).cache(tiny_llama)
    )
    assert any((state[0, 0] != state[0, 1]).any() for state in states[-1])


def test_no_heavy_hitters_is_a_sliding_window(tiny_llama):
    """A key of layer n carries what its own window saw, so the dense model needs a band mask."""
    ids, recent = ids_of(16), 5
    found, _ = step_by_step(tiny_llama, ids, 6, H2O(heavy=0, recent=recent).cache(tiny_llama))
    position = torch.arange(16)
    age = position[:, None] - position[None]
    band = (age >= 0) & ((age <= recent) | (position[:, None] < 6))  # the prompt is dense
    tiny_llama.set_attn_implementation("sdpa")
    with torch.no_grad():
        expected = tiny_llama(ids, attention_mask=band[None, None]).logits[:, 5:]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("options", [{}, {"average": True}, {"prompt_only": True}])
@pytest.mark.parametrize(("heavy", "recent"), [(3, 2), (0, 4), (4, 0), (0.3, 0.2)])
def test_simulation_by_mask_equals_the_evicting_cache(tiny_model, heavy, recent, options):
    ids, policy = ids_of(26, batch=2), H2O(heavy=heavy, recent=recent, **options)
    found, _ = step_by_step(tiny_model, ids, 10, policy.cache(tiny_model))
    prefill = SimulatedCache(tiny_model)
    with torch.no_grad():
        first = tiny_model(ids[:, :10], past_key_values=prefill).logits[:, -1:]
        rest = tiny_model(ids[:, 10:], past_key_values=prefill.under(policy)).logits
    torch.testing.assert_close(torch.cat([first, rest], dim=1), found, atol=1e-4, rtol=1e-4)


def test_simulated_baselines_differ_only_in_what_they_rank_by(tiny_llama):
    ids = ids_of(20)
    prefill = SimulatedCache(tiny_llama)
    seen = {}
    with torch.no_grad():
        tiny_llama(ids[:, :10], past_key_values=prefill)
        for ranking in ("attention", "earliest", "random"):
            cache = prefill.under(H2O(heavy=2, recent=2), ranking, seed=4)
            seen[ranking] = tiny_llama(ids[:, 10:], past_key_values=cache).logits
        again = prefill.under(H2O(heavy=2, recent=2), "random", seed=4)
        assert torch.equal(tiny_llama(ids[:, 10:], past_key_values=again).logits, seen["random"])
    assert not torch.allclose(seen["attention"], seen["random"], atol=1e-3)
    assert not torch.allclose(seen["attention"], seen["earliest"], atol=1e-3)


def test_attention_in_chunks_equals_attention_at_once(tiny_llama, monkeypatch):
    ids, mask = ids_of(30, batch=2), torch.ones(2, 30, dtype=torch.long)
    mask[1, :9] = 0
    caches = []
    with torch.no_grad():
        for elements in (2**23, 2 * 4 * 30 * 7):  # the second gives seven queries at a time
            monkeypatch.setattr(attention_module, "CHUNK_ELEMENTS", elements)
            cache = H2O(heavy=6, recent=4).cache(tiny_llama)
            tiny_llama(ids, attention_mask=mask, past_key_values=cache)
            caches.append(cache)
    for one, many in zip(caches[0].layers, caches[1].layers, strict=True):
        assert torch.equal(one.position, many.position)
        torch.testing.assert_close(one.score, many.score)
        torch.testing.assert_close(one.keys, many.keys)


def test_a_mask_of_the_callers_own_is_respected(tiny_llama):
    """A plain cache behaves as under SDPA; a bounded one reads the new tokens' columns."""
    ids = ids_of(6)
    mask = torch.ones(6, 6, dtype=torch.bool).tril()[None, None].clone()
    mask[..., 4, 2:4] = False
    with torch.no_grad():
        expected = tiny_llama(ids, attention_mask=mask).logits
        bounded = H2O(heavy=9, recent=9).cache(tiny_llama)
        for cache in (DynamicCache(), bounded):
            found = tiny_llama(ids, attention_mask=mask, past_key_values=cache).logits
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_queries_that_see_nothing_give_zeros_and_no_nan():
    query, key = torch.randn(1, 2, 3, 4), torch.randn(1, 1, 3, 4)
    output, received = attend_in_chunks(
        query, key, key, lambda a, b: torch.zeros(1, 1, b - a, 3, dtype=torch.bool), scaling=1.0
    )
    assert output.abs().max() == 0
    assert received.abs().max() == 0


def test_long_sums_do_not_saturate_in_half_precision():
    """1,000 queries on one key: bfloat16 sums would stop at 256."""
    query = torch.zeros(1, 1, 1000, 4, dtype=torch.bfloat16)
    key = torch.zeros(1, 1, 1, 4, dtype=torch.bfloat16)
    output, received = attend_in_chunks(
        query, key, key, lambda a, b: torch.ones(1, 1, b - a, 1, dtype=torch.bool), scaling=1.0
    )
    assert received.dtype == torch.float32
    assert received.item() == 1000
    assert output.dtype == torch.bfloat16


def test_gradients_pass_through_the_observed_attention():
    query = torch.randn(1, 2, 3, 4, dtype=torch.double, requires_grad=True)
    key = torch.randn(1, 1, 3, 4, requires_grad=True)
    causal = torch.ones(3, 3, dtype=torch.bool).tril()[None, None]
    output, received = attend_in_chunks(
        query.float(), key, key, lambda a, b: causal[:, :, a:b], scaling=0.5
    )
    plain = torch.nn.functional.scaled_dot_product_attention(
        query.float(), key, key, attn_mask=causal, scale=0.5, enable_gqa=True
    )
    torch.testing.assert_close(output, plain.transpose(1, 2))
    ours, theirs = (
        torch.autograd.grad(value.square().sum(), key, retain_graph=True)[0]
        for value in (output, plain)
    )
    torch.testing.assert_close(ours, theirs)
    assert not received.requires_grad


def test_a_cache_on_a_model_that_was_not_switched_says_so(tiny_llama):
    tiny_llama.set_attn_implementation("sdpa")
    cache = PolicyCache(tiny_llama.config, lambda number: H2O().layer())
    with torch.no_grad():
        tiny_llama(ids_of(8), past_key_values=cache)
        with pytest.raises(ModelError, match=r"policy\.cache\(model\)"):
            tiny_llama(ids_of(1), past_key_values=cache)


def test_a_model_without_full_attention_is_refused(tiny_gemma3):
    import copy

    config = copy.deepcopy(tiny_gemma3.config)
    config.layer_types = ["sliding_attention"] * 4
    with pytest.raises(ModelError, match="no full-attention layer"):
        PolicyCache(config, lambda number: H2O().layer())


def test_sliding_layers_of_gemma_keep_their_window(tiny_gemma3):
    cache = H2O(heavy=2, recent=2).cache(tiny_gemma3)
    with torch.no_grad():
        tiny_gemma3(ids_of(30), past_key_values=cache)
    assert [layer.keys.shape[-2] for layer in cache.layers] == [7, 7, 7, 4]


def test_a_second_turn_goes_on_from_the_bounded_cache(tiny_llama):
    """generate() hands on only the tokens after `get_seq_length()`."""
    cache = H2O(heavy=4, recent=4).cache(tiny_llama)
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    first = tiny_llama.generate(ids_of(12), past_key_values=cache, **options)
    longer = torch.cat([first, ids_of(3, seed=9)], dim=1)
    second = tiny_llama.generate(longer, past_key_values=cache, **options)
    assert second.shape[1] == 12 + 4 + 3 + 4
    assert cache.get_seq_length() == 22
    assert all(layer.keys.shape[-2] == 8 for layer in cache.layers)


@pytest.mark.model
def test_full_budget_on_smollm2_equals_plain_generation(smollm2):
    model, tokenizer = smollm2
    inputs = tokenizer(["The capital of France is", "One, two,"], return_tensors="pt", padding=True)
    options = {"max_new_tokens": 8, "do_sample": False}
    plain = model.generate(**inputs, past_key_values=DynamicCache(config=model.config), **options)
    cache = H2O(heavy=64, recent=64).cache(model)
    try:
        assert torch.equal(model.generate(**inputs, past_key_values=cache, **options), plain)
    finally:
        model.set_attn_implementation("sdpa")
    assert math.isfinite(float(cache.layers[0].score.sum()))
