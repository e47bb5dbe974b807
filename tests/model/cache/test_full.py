import pytest
import torch
from transformers import DynamicCache

from tokenry.core.errors import InputError, ModelError
from tokenry.model import compat
from tokenry.model.cache.full import DecodingLayer, Full, decoding_cache
from tokenry.model.cache.h2o import H2O
from tokenry.model.cache.policy import cache_bytes
from tokenry.model.cache.tokenselect import TokenSelect
from tokenry.model.decoding import DecodingState


def ids_of(length, batch=1, seed=1):
    return torch.randint(2, 64, (batch, length), generator=torch.Generator().manual_seed(seed))


def test_a_buffer_that_grows_holds_what_concatenation_holds(tiny_llama, monkeypatch):
    monkeypatch.setattr("tokenry.model.cache.full.COLUMNS", 4)
    ids = ids_of(40)
    plain, full = DynamicCache(), Full().cache(tiny_llama)
    with torch.no_grad():
        for start, stop in [(0, 3), (3, 10), *((t, t + 1) for t in range(10, 40))]:
            expected = tiny_llama(ids[:, start:stop], past_key_values=plain).logits
            found = tiny_llama(ids[:, start:stop], past_key_values=full).logits
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(full.layers, plain.layers, strict=True):
        torch.testing.assert_close(ours.keys, theirs.keys)
        torch.testing.assert_close(ours.values, theirs.values)
        assert ours.buffers[0].shape[2] <= 48


def test_long_prompts_in_blocks_equal_one_table(tiny_model, monkeypatch):
    """Padding, a second turn, and more queries than a block holds."""
    monkeypatch.setattr("tokenry.model.attention.dense.ROWS", 7)
    ids, mask = ids_of(40, batch=2), torch.ones(2, 40, dtype=torch.long)
    mask[1, :9] = 0
    position = (mask.cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        tiny_model.set_attn_implementation("sdpa")
        expected = tiny_model(ids, attention_mask=mask, position_ids=position).logits
        cache, found = Full().cache(tiny_model), []
        for start, stop in ((0, 22), (22, 40)):
            output = tiny_model(
                ids[:, start:stop],
                attention_mask=mask[:, :stop],
                position_ids=position[:, start:stop],
                past_key_values=cache,
            )
            found.append(output.logits)
    found = torch.cat(found, dim=1)
    torch.testing.assert_close(found[0], expected[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[1, 9:], expected[1, 9:], atol=1e-4, rtol=1e-4)


def test_gradients_are_refused_rather_than_lost(tiny_llama):
    with torch.enable_grad(), pytest.raises(ModelError, match="no_grad"):
        tiny_llama(ids_of(5), past_key_values=Full().cache(tiny_llama))


def test_a_cache_filled_in_inference_mode_goes_on_outside_it(tiny_llama):
    for policy in (Full(), TokenSelect(n_init=1, k=2, n_local=3)):
        cache = policy.cache(tiny_llama)
        with torch.inference_mode():
            tiny_llama(ids_of(20), past_key_values=cache)
            tiny_llama(ids_of(1), past_key_values=cache)
        with torch.no_grad():
            tiny_llama(ids_of(1), past_key_values=cache)
        assert cache.get_seq_length() == 22


def test_a_full_cache_has_no_size():
    with pytest.raises(InputError, match="no size"):
        Full.of_size(128)


def test_bytes_are_those_of_keys_values_and_state(tiny_llama):
    cache = H2O(heavy=3, recent=3).cache(tiny_llama)
    with torch.no_grad():
        tiny_llama(ids_of(20), past_key_values=cache)
    keys = 3 * 2 * (2 * 6 * 8 * 4)  # layers, keys and values, [heads, held, D] float32
    state = 3 * 2 * (4 + 4 + 1 + 4) * 6  # score, queries, held, position of each key
    assert keys <= cache_bytes(cache) - state <= keys + 3 * 2 * 8


@pytest.mark.parametrize(
    "policy", [Full(), TokenSelect(n_init=8, k=40, n_local=16), TokenSelect(1, 4, 3, reuse=2.0)]
)
def test_decoding_states_grow_trees_on_it(policy, tiny_llama):
    """A kept path equals the same tokens appended one by one, wherever the nodes stood."""
    ids = ids_of(24)
    state = DecodingState.start(tiny_llama, ids, cache=policy.cache(tiny_llama))
    tokens, parents = torch.tensor([5, 6, 7, 8]), torch.tensor([-1, 0, 0, 2])
    state.tree(tokens, parents)
    state.keep(torch.tensor([0, 2, 3]))
    plain = DecodingState.start(tiny_llama, ids, cache=policy.cache(tiny_llama))
    for token in (5, 7, 8):
        plain.append(torch.tensor([token]))
    ample = policy != TokenSelect(1, 4, 3, reuse=2.0)
    for found, expected in zip(state.cache.layers, plain.cache.layers, strict=True):
        assert found.keys.shape == expected.keys.shape
        if ample or found is state.cache.layers[0]:  # later layers depend on what was selected
            torch.testing.assert_close(found.keys, expected.keys, atol=1e-5, rtol=1e-5)
    if ample:
        torch.testing.assert_close(state.logits, plain.logits, atol=1e-4, rtol=1e-4)
    state.crop(2)
    assert state.cache.get_seq_length() == 25
    state.append(torch.tensor([9]))


@pytest.mark.parametrize("policy", [Full(), TokenSelect(1, 4, 3), H2O(heavy=4, recent=4)])
def test_copies_and_forks_are_independent(policy, tiny_llama):
    state = DecodingState.start(tiny_llama, ids_of(20, batch=2), cache=policy.cache(tiny_llama))
    state.append(torch.tensor([3, 4]))
    twin = state.copy()
    expected = [state.append(torch.tensor([t, t + 1])) for t in (5, 6, 7)]
    found = [twin.append(torch.tensor([t, t + 1])) for t in (5, 6, 7)]
    torch.testing.assert_close(torch.stack(found), torch.stack(expected))
    state.select(torch.tensor([1, 0, 1]))
    after = state.append(torch.tensor([8, 9, 8]))
    torch.testing.assert_close(after[0], after[2])
    torch.testing.assert_close(after[:2], twin.append(torch.tensor([9, 8]))[[1, 0]])


def test_evicted_tokens_cannot_be_taken_back_and_nothing_is_half_done(tiny_llama):
    from tokenry.model.cache.per_layer import PerLayer

    cache = PerLayer({2: H2O(heavy=2, recent=2)}).cache(tiny_llama)
    state = DecodingState.start(tiny_llama, ids_of(20), cache=cache)
    for take_back in (
        lambda: state.crop(1),
        lambda: cache.crop(-1),
        lambda: compat.keep_columns(cache, 18, torch.tensor([[0]])),
    ):
        with pytest.raises(ModelError, match="evicted"):
            take_back()
        assert [layer.get_seq_length() for layer in cache.layers] == [20, 20, 20]


def test_sliding_layers_take_tokens_back_once_they_record(tiny_gemma3):
    ids = ids_of(30)
    cache = Full().cache(tiny_gemma3)
    state = DecodingState.start(tiny_gemma3, ids, cache=cache)
    if not cache.is_recording_past(0):
        with pytest.raises(ModelError, match="activate_past_recording"):
            state.crop(1)
        cache.activate_past_recording()
    plain = DecodingState.start(tiny_gemma3, ids)
    for one in (state, plain):
        one.tree(torch.tensor([5, 6, 7, 8, 9]), torch.tensor([-1, 0, 0, 2, 3]))
        one.keep(torch.tensor([0, 2, 3]))
        one.append(torch.tensor([4]))
        one.tree(torch.tensor([5, 6, 7]), torch.tensor([-1, 0, 1]))
        one.keep(torch.tensor([0, 1]))
    torch.testing.assert_close(state.logits, plain.logits, atol=1e-4, rtol=1e-4)


def decoding_state(model, ids, cache=None):
    state = DecodingState.start(model, ids, cache=cache)
    if cache is None:
        assert all(type(layer) is DecodingLayer for layer in state.cache.layers)
    return state


def test_a_state_has_columns_to_spare_and_copies_nothing_that_stays(tiny_llama):
    state = decoding_state(tiny_llama, ids_of(20))
    buffers = [[b.data_ptr() for b in layer.buffers] for layer in state.cache.layers]
    state.append(ids_of(3, seed=2))
    state.tree(ids_of(5)[0], torch.tensor([-1, 0, 0, 1, 2]))
    state.keep([0, 2, 4])
    state.crop(2)
    assert [[b.data_ptr() for b in layer.buffers] for layer in state.cache.layers] == buffers


def test_many_rows_of_few_tokens_take_few_columns(tiny_llama):
    state = decoding_state(tiny_llama, ids_of(20, batch=3))
    assert {b.shape[2] for layer in state.cache.layers for b in layer.buffers} == {36}
    for token in ids_of(60).T:
        state.append(token.expand(3))
    assert max(b.shape[2] for layer in state.cache.layers for b in layer.buffers) <= 80 + 16


@pytest.mark.parametrize("undecided", [False, True])
def test_copies_of_a_state_go_their_own_ways(tiny_model, undecided, monkeypatch):
    """They share columns until one of them writes, whichever it is and whatever it does."""
    monkeypatch.setattr("tokenry.model.cache.full.COLUMNS", 64)

    def grow(state, seed):
        state.crop(3)
        state.append(ids_of(4, seed=seed))
        state.tree(ids_of(4, seed=seed)[0], torch.tensor([-1, 0, 0, 2]))
        state.keep([0, 2, 3])
        state.select(torch.tensor([0, 0]))
        return state.append(ids_of(2, batch=2, seed=seed))

    expected = {}
    for seed in (5, 6):
        alone = decoding_state(tiny_model, ids_of(12), DynamicCache())
        if undecided:
            alone.tree(ids_of(3)[0], torch.tensor([-1, 0, 0]))
        expected[seed] = grow(alone, seed)
    for first, second in ((5, 6), (6, 5)):
        state = decoding_state(tiny_model, ids_of(12))
        if undecided:
            state.tree(ids_of(3)[0], torch.tensor([-1, 0, 0]))
        twin = state.copy()
        found = {first: grow(state, first), second: grow(twin, second)}
        for seed in (5, 6):
            torch.testing.assert_close(found[seed], expected[seed], atol=1e-4, rtol=1e-4)


def test_a_cache_that_inference_mode_made_can_be_written_outside(tiny_llama):
    state = decoding_state(tiny_llama, ids_of(9))
    with torch.no_grad():
        output = tiny_llama(ids_of(2, seed=3), past_key_values=state.cache)
        expected = tiny_llama(torch.cat([ids_of(9), ids_of(2, seed=3)], dim=1)).logits[:, -2:]
    torch.testing.assert_close(output.logits, expected, atol=1e-4, rtol=1e-4)


def test_an_empty_decoding_cache_is_as_transformers_has_it():
    cache = decoding_cache()
    assert cache.get_seq_length() == 0
    assert cache.get_mask_sizes(4, 0) == (4, 0)
