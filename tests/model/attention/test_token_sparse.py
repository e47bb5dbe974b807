from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from tokenry.core.errors import InputError, ModelError, ShapeError
from tokenry.model.attention.columns import compress, scatter
from tokenry.model.attention.drift import layer_drift, low_drift_layers
from tokenry.model.attention.layers import attention_layers, is_sliding
from tokenry.model.attention.prefill_cost import pairs
from tokenry.model.attention.token_sparse import (
    TokenSparse,
    coverage_budget,
    select_indices,
    window_saliency,
)
from tokenry.model.decoding import DecodingState

SMALL = {"min_tokens": 2, "window": 4, "pool": 3}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def states(B=2, H=4, heads=2, L=20, D=8, seed=0):
    draw = generator(seed)
    return (
        2 * torch.randn(B, H, L, D, generator=draw),
        torch.randn(B, heads, L, D, generator=draw),
        torch.randn(B, heads, L, D, generator=draw),
    )


def ids_of(length, batch=1, seed=1):
    return torch.randint(2, 64, (batch, length), generator=generator(seed))


def logits_of(model, ids, **options):
    with torch.no_grad():
        return model(ids, **options).logits


def test_saliency_is_the_mean_attention_of_the_last_queries():
    query, key, _ = states()
    window, pool, L = 4, 3, 20
    found = window_saliency(query, key, window=window, pool=pool)
    for b in range(2):
        for h in range(4):
            received = torch.zeros(L)
            for t in range(L - window, L):
                logits = query[b, h, t] @ key[b, h // 2, : t + 1].T / 8**0.5
                received[: t + 1] += logits.softmax(-1) / window
            prefix = [0.0, *received[: L - window].tolist(), 0.0]
            expected = [sum(prefix[k : k + pool]) / pool for k in range(L - window)]
            torch.testing.assert_close(found[b, h], torch.tensor(expected))
    assert (found.sum(-1) < 1).all()


def test_saliency_of_padded_columns_is_zero_and_changes_nothing():
    query, key, _ = states()
    padding = torch.tensor([5, 0])
    found = window_saliency(query, key, window=4, pool=3, padding=padding)
    alone = window_saliency(query[:1, :, 5:], key[:1, :, 5:], window=4, pool=3)
    assert found[0, :, :5].abs().max() == 0
    torch.testing.assert_close(found[:1, :, 5:], alone)
    torch.testing.assert_close(found[1:], window_saliency(query, key, window=4, pool=3)[1:])


def test_coverage_of_the_worked_case():
    scores = torch.tensor([[0.3, 0.1, 0.4, 0.2]])
    assert coverage_budget(scores, 0.35, min_tokens=0).tolist() == [1]
    assert coverage_budget(scores, 0.35, min_tokens=3).tolist() == [3]
    assert coverage_budget(scores, 0.05, min_tokens=0).tolist() == [4]  # s = 0: dense
    assert coverage_budget(scores, 0.0, min_tokens=0).tolist() == [4]


@given(st.lists(st.integers(0, 50), min_size=2, max_size=12), st.floats(0.01, 0.9))
def test_the_dropped_columns_are_the_smallest_set_that_reaches_tau(weights, tau):
    weights = [weight + 1 for weight in weights]
    total = sum(weights)
    keep = int(coverage_budget(torch.tensor([weights]).float() / total, tau, min_tokens=0))
    share = [weight / total for weight in sorted(weights)]
    dropped = len(weights) - keep
    if dropped == 0:
        assert share[0] >= tau - 1e-6
    else:
        assert sum(share[: dropped - 1]) < tau + 1e-6
        assert sum(share[:dropped]) >= tau - 1e-6


def test_padding_is_neither_kept_nor_dropped():
    scores = torch.tensor([[0.0, 0.0, 0.1, 0.2, 0.3, 0.4], [0.1, 0.1, 0.2, 0.2, 0.2, 0.2]])
    padding = torch.tensor([2, 0])
    assert coverage_budget(scores, 0.35, min_tokens=0, padding=padding).tolist() == [1, 3]


def test_indices_increase_and_end_with_the_window():
    scores = torch.rand(2, 3, 9, generator=generator())
    index = select_indices(scores, torch.tensor([5, 2]), 4)
    assert index.shape == (2, 3, 9)
    assert index[0, :, -4:].tolist() == [[9, 10, 11, 12]] * 3
    assert (index[0].diff(dim=-1) > 0).all()
    assert index[1, :, 6:].tolist() == [[13] * 3] * 3  # unused
    for h in range(3):
        assert set(index[0, h, :5].tolist()) == set(scores[0, h].topk(5).indices.tolist())
        assert set(index[1, h, :2].tolist()) == set(scores[1, h].topk(2).indices.tolist())


def test_all_positions_are_the_identity():
    query, key, value = states()
    index = torch.arange(20).expand(2, 4, 20)
    output = scaled_dot_product_attention(
        compress(query, index), compress(key, index), compress(value, index), is_causal=True
    )
    dense = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    assert torch.equal(scatter(output, index, 20), output)
    torch.testing.assert_close(output, dense)


def masked_reference(query, key, value, index, scaling):
    """Dense attention of q_t over {j in I_h, j <= t}, by an L x L mask; 0 where t is not in I_h."""
    B, H, L, _ = query.shape
    chosen = torch.zeros(B, H, L + 1, dtype=torch.bool).scatter_(2, index, True)[..., :L]
    group = H // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    logits = query @ key.transpose(-1, -2) * scaling
    allowed = chosen[:, :, None] & torch.ones(L, L, dtype=torch.bool).tril()
    probability = logits.masked_fill(~allowed, -torch.inf).softmax(-1)
    return (probability @ value).where(chosen[..., None], 0.0)


@pytest.mark.parametrize("padded", ["none", "left", "right"])
def test_a_selected_position_attends_among_the_selected_and_the_others_give_zero(padded):
    query, key, value = states()
    real = torch.ones(2, 20, dtype=torch.bool)
    real[0, {"none": slice(0, 0), "left": slice(0, 6), "right": slice(14, 20)}[padded]] = False
    policy = TokenSparse(tau=0.3, **SMALL)
    index = policy.select(query, key, 0.3, None if padded == "none" else real)
    output = scatter(
        scaled_dot_product_attention(
            compress(query, index),
            compress(key, index),
            compress(value, index),
            is_causal=True,
            scale=0.3,
        ),
        index,
        20,
    )
    torch.testing.assert_close(output, masked_reference(query, key, value, index, 0.3))
    for b in range(2):
        for h in range(4):
            used = index[b, h][index[b, h] < 20]
            assert (used.diff() > 0).all()
            assert real[b, used].all()
            assert used[-4:].tolist() == real[b].nonzero().flatten()[-4:].tolist()
    assert (output == 0).all(-1).any()
    assert (output[1, :, -1] != 0).all(-1).all()
    heads_differ = [set(row.tolist()) for row in index[1]]
    assert any(row != heads_differ[0] for row in heads_differ)


@pytest.mark.parametrize("options", [{"tau": 0.0}, {"tau": 0.2, "min_tokens": 1024}, {"tau": 1e-9}])
def test_dense_cases_are_bitwise_dense(tiny_model, options):
    ids = ids_of(24, batch=2)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    for attention in (None, mask):
        dense = logits_of(tiny_model, ids, attention_mask=attention)
        policy = TokenSparse(**({"layers": None} | SMALL | options))
        with policy.on(tiny_model) as prefill:
            assert torch.equal(logits_of(tiny_model, ids, attention_mask=attention), dense)
        assert prefill.cost.attended == {}
        assert prefill.cost.sparse_flops == prefill.cost.dense_flops > 0
    assert tiny_model.config._attn_implementation == "sdpa"


def test_a_model_with_sparse_layers_equals_the_masked_reference(tiny_llama):
    """Layer 2 sees an L x L mask for each head; everything else as in the model."""
    from transformers import AttentionInterface

    ids, found = ids_of(24, batch=2), []

    def reference(module, query, key, value, attention_mask, scaling=None, **options):
        index = torch.arange(24).expand(2, 4, 24)
        if module.layer_idx == 2:
            index = policy.select(query, key, scaling)
            found.append((index[:, 0] < 24).sum(-1))
        return masked_reference(query, key, value, index, scaling).transpose(1, 2), None

    AttentionInterface.register("test_masked_reference", reference)
    policy = TokenSparse(layers=(2,), tau=0.3, **SMALL)
    try:
        tiny_llama.set_attn_implementation("test_masked_reference")
        expected = logits_of(tiny_llama, ids)
    finally:
        tiny_llama.set_attn_implementation("sdpa")
    with policy.on(tiny_llama) as prefill:
        output = logits_of(tiny_llama, ids)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)
    assert prefill.cost.attended.keys() == {2}
    assert torch.equal(prefill.cost.attended[2], found[0])
    dense = logits_of(tiny_llama, ids)
    assert (output[:, -1] - dense[:, -1]).abs().max() > 1e-3
    per_pair = 4 * 8 * 4
    assert prefill.cost.dense_flops == 3 * 2 * per_pair * 24 * 25 // 2
    scores = 2 * 8 * 4 * 4 * 24 * 2  # two rows, four heads, four queries of the window
    saved = per_pair * (2 * 24 * 25 // 2 - pairs(found[0]))
    assert prefill.cost.sparse_flops == prefill.cost.dense_flops - saved + scores


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_row_is_the_same_alone_and_in_a_padded_batch(tiny_model, side):
    ids, short = ids_of(30, batch=2), 21
    mask = torch.ones_like(ids)
    empty = slice(0, 30 - short) if side == "left" else slice(short, 30)
    ids[0, empty], mask[0, empty] = 0, 0
    layers = (3,) if len(attention_layers(tiny_model)) == 4 else (1, 2)
    policy = TokenSparse(layers, tau=0.3, **SMALL)
    real = mask[0].bool()
    with policy.on(tiny_model) as prefill:
        both = logits_of(tiny_model, ids, attention_mask=mask)
        together = {number: rows.tolist() for number, rows in prefill.cost.attended.items()}
        alone = logits_of(tiny_model, ids[:1, real])
        first = {number: rows.tolist() for number, rows in prefill.cost.attended.items()}
        second = logits_of(tiny_model, ids[1:])
        assert together == {n: first[n] + prefill.cost.attended[n].tolist() for n in first}
    assert all(0 < rows[0] < short for rows in together.values())
    torch.testing.assert_close(both[0, real], alone[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(both[1], second[0], rtol=1e-4, atol=1e-4)


def test_a_short_row_of_a_batch_stays_dense(tiny_llama):
    ids = ids_of(30, batch=3)
    mask = torch.ones_like(ids)
    mask[0, :25], mask[1, :27] = 0, 0  # 5 tokens; 3 tokens, fewer than the window
    with TokenSparse(layers=(1, 2), tau=0.3, **SMALL).on(tiny_llama) as prefill:
        both = logits_of(tiny_llama, ids, attention_mask=mask)
        assert prefill.cost.attended[1][:2].tolist() == [5, 3]
    torch.testing.assert_close(both[0, 25:], logits_of(tiny_llama, ids[:1, 25:])[0])
    torch.testing.assert_close(both[1, 27:], logits_of(tiny_llama, ids[1:2, 27:])[0])


def test_the_cache_is_whole_and_decoding_is_dense(tiny_llama):
    ids = ids_of(24)
    with torch.no_grad(), TokenSparse(layers=(2,), tau=0.3, **SMALL).on(tiny_llama):
        sparse = tiny_llama(ids)
        cache = sparse.past_key_values
        assert [layer.keys.shape[2] for layer in cache.layers] == [24] * 3
        step = tiny_llama(ids_of(1, seed=5), past_key_values=cache).logits
    with torch.no_grad():
        # layer 2 is the last: the keys that it wrote do not depend on its own sparse attention
        dense = tiny_llama(ids)
        expected = tiny_llama(ids_of(1, seed=5), past_key_values=dense.past_key_values).logits
    torch.testing.assert_close(step, expected)
    assert not torch.allclose(sparse.logits[:, -1], dense.logits[:, -1], atol=1e-3)


def test_a_token_dropped_in_one_layer_may_be_read_in_the_next(tiny_llama):
    chosen = []

    class Remembered(TokenSparse):
        def select(self, *args):
            chosen.append(super().select(*args))
            return chosen[-1]

    with Remembered(layers=(0, 1, 2), tau=0.4, **SMALL).on(tiny_llama):
        logits_of(tiny_llama, ids_of(24))
    first, second, third = (set(index.flatten().tolist()) for index in chosen)
    assert second - first or third - first


def test_generate_and_the_decoding_state_read_the_prompt_sparsely(tiny_model):
    ids = ids_of(30)
    number = len(attention_layers(tiny_model)) - 1
    with TokenSparse(layers=(number,), tau=0.3, **SMALL).on(tiny_model) as prefill:
        first = logits_of(tiny_model, ids)[:, -1]
        prefill.cost.attended.clear()
        state = DecodingState.start(tiny_model, ids)
        assert prefill.cost.attended.keys() == {number}
        torch.testing.assert_close(state.logits, first)
        tokens = []
        for _ in range(4):
            tokens.append(int(state.logits.argmax()))
            state.append(torch.tensor([tokens[-1]]))
        tree = DecodingState.start(tiny_model, ids)
        nodes = tree.tree(torch.tensor(tokens), torch.arange(4) - 1)
        assert nodes[-1].argmax() == state.logits.argmax()
        found = tiny_model.generate(ids, max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert found[0, 30:].tolist() == tokens


def test_packed_texts_stay_dense(tiny_llama):
    ids = ids_of(24)
    positions = torch.cat([torch.arange(12), torch.arange(12)])[None]
    dense = logits_of(tiny_llama, ids, position_ids=positions, use_cache=False)
    with TokenSparse(layers=(1, 2), tau=0.3, **SMALL).on(tiny_llama):
        packed = logits_of(tiny_llama, ids, position_ids=positions, use_cache=False)
    assert torch.equal(packed, dense)


def test_gradients_reach_the_selected_tokens(tiny_llama):
    ids = ids_of(24)
    with TokenSparse(layers=(1, 2), tau=0.3, **SMALL).on(tiny_llama):
        embedded = tiny_llama.get_input_embeddings()(ids).detach().requires_grad_()
        tiny_llama(inputs_embeds=embedded).logits[:, -1].sum().backward()
    assert embedded.grad is not None
    assert embedded.grad.isfinite().all()
    assert embedded.grad[:, -1].abs().sum() > 0


def test_bfloat16_selects_and_answers_in_bfloat16(tiny_llama):
    import copy

    model = copy.deepcopy(tiny_llama).bfloat16()
    with TokenSparse(layers=(1, 2), tau=0.3, **SMALL).on(model) as prefill:
        output = logits_of(model, ids_of(24))
    assert output.dtype == torch.bfloat16
    assert output.isfinite().all()
    assert prefill.cost.attended.keys() == {1, 2}


def test_a_peft_model_can_be_sparse(tiny_llama):
    import copy

    from peft import LoraConfig, get_peft_model

    model = get_peft_model(copy.deepcopy(tiny_llama), LoraConfig(target_modules=["q_proj"]))
    policy = TokenSparse(layers=(2,), tau=0.3, **SMALL)
    with policy.on(tiny_llama):
        expected = logits_of(tiny_llama, ids_of(24))
    with policy.on(model), torch.no_grad():
        found = model(input_ids=ids_of(24)).logits
    torch.testing.assert_close(found, expected)


def test_drift_is_the_relative_change_of_the_hidden_states(tiny_model):
    ids = ids_of(12, batch=2)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    with torch.no_grad():
        output = tiny_model(ids, attention_mask=mask, output_hidden_states=True)
    drift = layer_drift(tiny_model, ids, mask)
    assert drift.shape == (tiny_model.config.num_hidden_layers,)
    torch.testing.assert_close(drift.sum(), torch.tensor(1.0))
    inner = output.hidden_states[:-1]  # the last one is after the final norm
    change = torch.stack(
        [
            ((after - before).norm(dim=-1) / before.norm(dim=-1))[mask.bool()].mean()
            for before, after in pairwise(inner)
        ]
    )
    torch.testing.assert_close(drift[:-1] / drift[0], change / change[0])
    layers = low_drift_layers(tiny_model, ids, mask, quantile=1.0)
    assert layers == ((0, 1, 2) if len(inner) == 3 else (3,))


def test_the_default_is_the_second_half_without_sliding_layers(tiny_llama, tiny_gemma3):
    assert TokenSparse().sparse_layers(attention_layers(tiny_llama)) == {1, 2}
    assert TokenSparse().sparse_layers(attention_layers(tiny_gemma3)) == {3}


def test_what_cannot_be_sparse_is_refused(tiny_llama, tiny_gemma3):
    with pytest.raises(InputError, match="layer 1 has a sliding window"):
        TokenSparse(layers=(1,)).attach(tiny_gemma3)
    with pytest.raises(InputError, match="no layer 7"):
        TokenSparse(layers=(7,)).attach(tiny_llama)
    for bad in ({"tau": 1.0}, {"tau": -0.1}, {"window": 0}, {"min_tokens": -1}, {"pool": 4}):
        with pytest.raises(InputError):
            TokenSparse(**bad)
    query, key, _ = states()
    with pytest.raises(ShapeError, match="window of 20"):
        window_saliency(query, key, window=20)
    with pytest.raises(InputError, match="cannot keep"):
        select_indices(torch.rand(1, 1, 4), 5, 2)
    with pytest.raises(InputError, match="quantile"):
        low_drift_layers(tiny_llama, ids_of(8), quantile=2)
    with pytest.raises(ModelError, match="no attention layers"):
        attention_layers(torch.nn.Linear(2, 2))


def test_a_copy_of_an_attached_model_says_that_it_has_no_policy(tiny_llama):
    import copy

    with TokenSparse(layers=(2,)).on(tiny_llama):
        model = copy.deepcopy(tiny_llama)
    with pytest.raises(ModelError, match="without a policy"):
        logits_of(model, ids_of(8))


def test_attaching_again_replaces_the_policy(tiny_llama):
    TokenSparse(layers=(2,), **SMALL).attach(tiny_llama)
    second = TokenSparse(layers=(1,), tau=0.3, **SMALL).attach(tiny_llama)
    try:
        logits_of(tiny_llama, ids_of(24))
        assert second.cost.attended.keys() == {1}
    finally:
        second.detach()
    assert tiny_llama.config._attn_implementation == "sdpa"


@pytest.mark.model
def test_gemma3_reads_a_prompt_sparsely_in_its_full_layers(gemma3):
    model, tokenizer = gemma3
    ids = tokenizer("The rain in Spain stays mainly in the plain. " * 40, return_tensors="pt")
    ids = ids["input_ids"][:, :400]
    full = [number for number, module in attention_layers(model).items() if not is_sliding(module)]
    with torch.no_grad():
        dense = model(ids).logits
        with TokenSparse(layers=tuple(full), min_tokens=64, window=32, tau=0).on(model):
            assert torch.equal(model(ids).logits, dense)
        with TokenSparse(layers=tuple(full), min_tokens=64, window=32, tau=0.05).on(model) as read:
            found = model(ids).logits
    assert set(read.cost.attended) <= set(full)
    assert read.cost.attended
    assert read.cost.sparse_flops < read.cost.dense_flops
    assert found.isfinite().all()
    kl = (
        dense[0, -1].log_softmax(-1).exp()
        * (dense[0, -1].log_softmax(-1) - found[0, -1].log_softmax(-1))
    ).sum()
    assert float(kl) < 1.0
