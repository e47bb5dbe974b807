import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenry.core.errors import InputError, ModelError
from tokenry.model.attention.masks import GivenMask
from tokenry.model.cache.selection import best, mean_query, scores, soft_votes
from tokenry.model.cache.tokenselect import TokenSelect

SMALL = TokenSelect(n_init=2, k=3, n_local=4)


def drawn(length, rows=1, seed=0, heads=6, key_heads=2, size=8, smooth=False):
    """Queries [B, H, T, D], keys and values [B, Hkv, T, D]; smooth: like their predecessors."""
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (
        torch.randn(rows, h, length, size, generator=generator)
        for h in (heads, key_heads, key_heads)
    )
    if smooth:
        query = torch.cat([query[:, :, :1], 0.3 * query[:, :, 1:]], dim=2).cumsum(2)
    return query, key, value


def feed(layer, query, key, value, table=None):
    """One forward: new tokens with their mask [B, 1, q, all columns], None for a causal one."""
    layer.update(key, value)
    options = {"scaling": 0.5, "softcap": None, "dropout": 0.0}
    output = layer.attend(query, layer.keys, layer.values, GivenMask(table, query), **options)
    layer.waiting = False
    return output


def step_by_step(layer, query, key, value, prompt, real=None):
    """Outputs for each token after the prompt, [B, T - prompt, H, D]; real: bool [B, T]."""
    outputs = []
    T = query.shape[2]
    for start, stop in [(0, prompt), *((t, t + 1) for t in range(prompt, T))]:
        table = None
        if real is not None:
            causal = torch.arange(stop) <= torch.arange(start, stop)[:, None]
            table = (causal & real[:, None, :stop])[:, None]
        part = (states[:, :, start:stop] for states in (query, key, value))
        outputs.append(feed(layer, *part, table))
    return torch.cat(outputs[1:], dim=1)


def brute_force(policy, query, key, value, prompt, columns=None):
    """The method in loops, for one row without padding: outputs, selected sets, reused or not."""
    H, T, _ = query.shape
    group = H // key.shape[0]
    n_init, k, n_local = (int(n[0]) for n in policy.budget(torch.tensor([prompt])))
    outputs, sets, reused = [], [], []
    chosen, asked = None, None
    for t in range(prompt, T):
        N = t + 1
        if n_init + k + n_local >= N:
            seen = list(range(N))
        else:
            flat = query[:, t].flatten()
            if asked is not None and torch.cosine_similarity(flat, asked, 0) >= policy.reuse:
                reused.append(True)
            else:
                votes = torch.zeros(N - n_local - n_init)
                for h in range(H):
                    scores = [query[h, t] @ key[h // group, m] for m in range(n_init, N - n_local)]
                    votes += torch.stack(scores).softmax(0)
                best = sorted(range(len(votes)), key=lambda m: -float(votes[m]))[:k]
                chosen, asked = [n_init + m for m in best], flat
                reused.append(False)
            seen = sorted({*range(n_init), *chosen, *range(N - n_local, N)})
        sets.append(seen)
        heads = []
        for h in range(H):
            weight = (key[h // group, seen] @ query[h, t] * 0.5).softmax(0)
            heads.append(weight @ value[h // group, seen])
        outputs.append(torch.stack(heads))
    return torch.stack(outputs), sets, reused


@pytest.mark.parametrize("reuse", [2.0, 0.9, 0.5, -1.0])
@pytest.mark.parametrize("prompt", [4, 20])
def test_decoding_equals_the_method_in_loops(reuse, prompt):
    policy = TokenSelect(n_init=2, k=3, n_local=4, reuse=reuse)
    states = drawn(60, smooth=True)
    layer = policy.layer()
    found = step_by_step(layer, *states, prompt)
    expected, _, reused = brute_force(policy, *(s[0] for s in states), prompt)
    torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=1e-4)
    assert layer.hit_rate == pytest.approx(sum(reused) / len(reused))
    if reuse == 0.9:
        assert 0 < layer.hit_rate < 1


def test_reusing_for_ever_selects_once_and_a_threshold_above_one_always_selects():
    for reuse, hits in ((-1.0, 39), (2.0, 0)):
        layer = TokenSelect(n_init=2, k=3, n_local=4, reuse=reuse).layer()
        step_by_step(layer, *drawn(60), 20)
        assert (layer.selection.queries, layer.selection.hits) == (40, hits)


def test_rows_of_a_batch_reuse_and_select_each_for_itself():
    states = drawn(60, rows=3, smooth=True)
    states = (torch.cat([states[0][:2], drawn(60)[0]]), *states[1:])  # the third one is restless
    layer = SMALL.layer()
    found = step_by_step(layer, *states, 20)
    reused = 0
    for row in range(3):
        expected, _, was = brute_force(SMALL, *(s[row] for s in states), 20)
        torch.testing.assert_close(found[row], expected, atol=1e-5, rtol=1e-4)
        reused += sum(was)
    assert layer.selection.hits == reused > 0
    order = torch.tensor([2, 0])
    layer.batch_select_indices(order)
    rest = drawn(8, rows=3, seed=8)
    found = torch.cat([feed(layer, *(s[order, :, t : t + 1] for s in rest)) for t in range(8)], 1)
    whole = [torch.cat([s, r], dim=2) for s, r in zip(states, rest, strict=True)]
    for place, row in enumerate(order.tolist()):
        expected, _, _ = brute_force(SMALL, *(s[row] for s in whole), 20)
        torch.testing.assert_close(found[place], expected[40:], atol=1e-5, rtol=1e-4)


def test_rows_with_padding_equal_the_method_in_loops_on_each():
    states = drawn(50, rows=3, smooth=True)
    real = torch.ones(3, 50, dtype=torch.bool)
    real[1, :7] = False
    real[2, :17] = False
    found = step_by_step(SMALL.layer(), *states, 20, real)
    for row, padding in enumerate((0, 7, 17)):
        alone = (s[row, :, padding:] for s in states)
        expected, _, _ = brute_force(SMALL, *alone, 20 - padding)
        torch.testing.assert_close(found[row], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("pool", [0, 3, 5])
@pytest.mark.parametrize("share", [False, True])
def test_a_left_padded_row_is_the_row_alone_with_pooled_votes_too(tiny_llama, pool, share):
    """Pooling gives neighbours equal votes: the first of them is taken, whichever way is gone."""
    sizes = {"n_init": 0.1, "k": 0.2, "n_local": 0.15} if share else {"n_init": 2, "k": 5}
    policy = TokenSelect(**({"n_local": 4} | sizes), pool=pool)
    ids = torch.randint(2, 64, (2, 40), generator=torch.Generator().manual_seed(1))
    real = torch.ones_like(ids)
    real[1, :9] = 0

    def read(ids, real, prompt):
        cache, positions = policy.cache(tiny_llama), (real.cumsum(1) - 1).clamp_min(0)
        parts = []
        for start, end in itertools.pairwise([0, *range(prompt, ids.shape[1] + 1)]):
            output = tiny_llama(
                ids[:, start:end],
                attention_mask=real[:, :end],
                position_ids=positions[:, start:end],
                past_key_values=cache,
            )
            parts.append(output.logits)
        return torch.cat(parts, dim=1)

    with torch.no_grad():
        both = read(ids, real, 32)
        alone = read(ids[1:, 9:], real[1:, 9:], 23)
    torch.testing.assert_close(both[1, 9:], alone[0], atol=1e-4, rtol=1e-4)


def test_of_equal_votes_the_first_are_taken_in_torch_and_in_machine_code():
    votes = torch.tensor([[1.0, 3, 3, 3, 2, 2, 2, 0], [0.0, 0, 5, 0, 0, 0, 5, 5]])
    for dtype in (torch.float32, torch.float64):  # machine code has no float64
        assert best(votes.to(dtype), 5).tolist() == [[1, 2, 3, 4, 5], [0, 1, 2, 6, 7]]
        assert best(votes.to(dtype), 2).tolist() == [[1, 2], [2, 6]]
        assert best(votes.to(dtype), 0).tolist() == [[], []]


def test_padding_behind_a_text_is_refused():
    states = drawn(50, rows=2)
    real = torch.ones(2, 50, dtype=torch.bool)
    real[1, 15:20] = False
    with pytest.raises(ModelError, match="pad the prompts on the left"):
        step_by_step(SMALL.layer(), *states, 20, real)


def test_shares_give_each_row_of_a_batch_a_budget_of_its_own():
    policy = TokenSelect(n_init=0.1, k=0.2, n_local=0.2)
    states = drawn(50, rows=2, seed=4, smooth=True)
    real = torch.ones(2, 50, dtype=torch.bool)
    real[1, :15] = False
    layer = policy.layer()
    found = step_by_step(layer, *states, 30, real)
    assert [n.tolist() for n in layer.budget] == [[3, 1], [6, 3], [6, 3]]
    for row, padding in enumerate((0, 15)):
        alone = (s[row, :, padding:] for s in states)
        expected, _, _ = brute_force(policy, *alone, 30 - padding)
        torch.testing.assert_close(found[row], expected, atol=1e-5, rtol=1e-4)


def test_the_selection_is_sorted_without_repeats_and_beside_sinks_and_window():
    layer = TokenSelect(n_init=2, k=5, n_local=4, reuse=2).layer()
    query, key, value = drawn(40)
    for t in range(40):
        feed(layer, query[:, :, t : t + 1], key[:, :, t : t + 1], value[:, :, t : t + 1])
        if layer.selection.column is not None:
            columns = layer.selection.column[0].tolist()
            assert columns == sorted(set(columns))
            assert columns[:2] == [0, 1]
            assert len(columns) == 7
            assert columns[-1] < t + 1 - 4


def test_what_was_passed_over_can_be_selected_later():
    """Nothing is evicted: a needle that no query wanted is there for the one that does."""
    query, key, value = (torch.zeros(1, 1, 30, 2) for _ in range(3))
    query[..., 0] = 1.0
    key[:, :, 10] = torch.tensor([0.0, 9.0])  # the needle
    key[:, :, 5] = torch.tensor([9.0, 0.0])
    query[:, :, 29] = torch.tensor([0.0, 1.0])
    layer = TokenSelect(n_init=1, k=1, n_local=3).layer()
    step_by_step(layer, query[:, :, :29], key[:, :, :29], value[:, :, :29], 20)
    assert layer.selection.column[0].tolist() == [0, 5]
    feed(layer, query[:, :, 29:], key[:, :, 29:], value[:, :, 29:])
    assert layer.selection.column[0].tolist() == [0, 10]


def test_votes_hand_out_one_per_head():
    query, key, _ = drawn(12, rows=2)
    votes = soft_votes(query[:, :, 0], key)
    torch.testing.assert_close(votes.sum(-1), torch.full((2,), 6.0))


def test_votes_are_bounded_where_sums_of_scores_are_not():
    """Three heads, two keys, scores (3, 0), (3, 0), (0, 100): the sum would choose the second."""
    query = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
    key = torch.tensor([[[[3.0, 0.0], [0.0, 100.0]]]])
    votes = soft_votes(query, key)
    torch.testing.assert_close(votes, torch.tensor([[1.9051, 1.0949]]), atol=1e-4, rtol=0)


def test_votes_do_not_depend_on_the_order_of_heads_and_map_groups_in_blocks():
    query, key, _ = drawn(12)
    expected = soft_votes(query[:, :, 0], key)
    order = [4, 3, 5, 1, 0, 2]  # whole groups change places, with their key heads
    torch.testing.assert_close(soft_votes(query[:, order, 0], key[:, [1, 0]]), expected)
    loops = sum((key[0, h // 3] @ query[0, h, 0]).softmax(0) for h in range(6))
    torch.testing.assert_close(expected[0], loops)


def test_one_head_selects_by_its_scores():
    query, key, _ = drawn(12, heads=1, key_heads=1)
    votes = soft_votes(query[:, :, 0], key)
    assert votes.argsort().tolist() == (key[0] @ query[0, 0, 0]).argsort().tolist()


def test_votes_among_the_middle_alone_are_those_of_the_middle():
    query, key, _ = drawn(12)
    middle = torch.zeros(1, 12, dtype=torch.bool)
    middle[:, 3:8] = True
    votes = soft_votes(query[:, :, 0], key, middle)
    torch.testing.assert_close(votes[:, 3:8], soft_votes(query[:, :, 0], key[:, :, 3:8]))
    assert votes.sum() == votes[:, 3:8].sum()
    assert soft_votes(query[:, :, 0], key, torch.zeros_like(middle)).abs().max() == 0


@given(st.integers(0, 3), st.integers(3, 20), st.integers(0, 99))
def test_pooling_gives_each_key_the_best_vote_around_it(half, length, seed):
    query, key, _ = drawn(length, seed=seed)
    votes = soft_votes(query[:, :, 0], key)[0]
    pooled = soft_votes(query[:, :, 0], key, pool=2 * half + 1)[0]
    for m in range(length):
        assert pooled[m] == votes[max(0, m - half) : m + half + 1].max()


def test_queries_that_are_padding_do_not_count_in_the_mean():
    query = torch.randn(2, 3, 4, 5)
    real = torch.tensor([[True, True, False, False], [True] * 4])
    mean = mean_query(query, real)
    torch.testing.assert_close(mean[0], query[0, :, :2].mean(1))
    torch.testing.assert_close(mean[1], query[1].mean(1))


def full_attention(query, key, value, seen):
    """Of queries [H, q, D] on the columns that `seen` [q, T] says."""
    group = query.shape[0] // key.shape[0]
    key, value = key.repeat_interleave(group, 0), value.repeat_interleave(group, 0)
    weight = (query @ key.mT * 0.5).masked_fill(~seen, -torch.inf).softmax(-1)
    return (weight @ value).transpose(0, 1)


def test_a_chunk_shares_the_selection_of_its_mean_query_and_sees_itself():
    query, key, value = drawn(46)
    layer = TokenSelect(n_init=2, k=3, n_local=4).layer()
    feed(layer, query[:, :, :40], key[:, :, :40], value[:, :, :40])
    found = feed(layer, query[:, :, 40:], key[:, :, 40:], value[:, :, 40:])
    mean = query[:, :, 40:].mean(2)
    chosen = soft_votes(mean, key[:, :, 2:37]).topk(3).indices[0] + 2
    seen = torch.zeros(6, 46, dtype=torch.bool)
    seen[:, :2] = seen[:, chosen] = seen[:, 37:40] = True
    seen[:, 40:] = torch.ones(6, 6, dtype=torch.bool).tril()
    expected = full_attention(query[0, :, 40:], key[0], value[0], seen)
    torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=1e-4)


def test_the_nodes_of_a_tree_see_their_ancestors_and_one_selection():
    query, key, value = drawn(44)
    layer = TokenSelect(n_init=2, k=3, n_local=4, chunk=2).layer()
    feed(layer, query[:, :, :40], key[:, :, :40], value[:, :, :40])
    ancestors = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]]).bool()
    table = torch.cat([torch.ones(4, 40, dtype=torch.bool), ancestors], dim=1)
    found = feed(layer, *(s[:, :, 40:] for s in (query, key, value)), table[None, None])
    chosen = soft_votes(query[:, :, 40:].mean(2), key[:, :, 2:37]).topk(3).indices[0] + 2
    seen = torch.zeros(4, 44, dtype=torch.bool)
    seen[:, :2] = seen[:, chosen] = seen[:, 37:40] = True
    seen[:, 40:] = ancestors
    expected = full_attention(query[0, :, 40:], key[0], value[0], seen)
    torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("reuse", [0.5, 2.0])
def test_taking_tokens_back_and_keeping_a_path_leave_no_trace(reuse):
    """Guesses in between change nothing where every query selects for itself; a selection that is
    used again is the one of the last step, guesses or not, so there only the keys are compared."""
    policy = TokenSelect(n_init=2, k=3, n_local=4, reuse=reuse)
    query, key, value = drawn(50, seed=2)
    plain, guessed = policy.layer(), policy.layer()
    wrong = drawn(50, seed=3)
    for layer in (plain, guessed):
        feed(layer, query[:, :, :30], key[:, :, :30], value[:, :, :30])
    for t in range(30, 50):
        now = [s[:, :, t : t + 1] for s in (query, key, value)]
        expected = feed(plain, *now)
        feed(guessed, *(s[:, :, :3] for s in wrong))
        guessed.crop(-3)
        tree = [torch.cat([w[:, :, :2], n], dim=2) for w, n in zip(wrong, now, strict=True)]
        table = torch.cat([torch.ones(3, t).bool(), torch.eye(3).bool()], dim=1)[None, None]
        feed(guessed, *tree, table)
        guessed.keep_columns(t, torch.tensor([[2]]))
        assert torch.equal(guessed.keys, plain.keys)
        assert torch.equal(guessed.values, plain.values)
        guessed.crop(-1)
        found = feed(guessed, *now)
        if reuse == 2.0:
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_a_cut_into_the_selected_columns_forgets_the_selection():
    query, key, value = drawn(60)
    layer = SMALL.layer()
    step_by_step(layer, query, key, value, 20)
    layer.crop(-30)
    assert layer.selection.column is None
    found = feed(layer, query[:, :, 30:31], key[:, :, 30:31], value[:, :, 30:31])
    expected, _, _ = brute_force(SMALL, *(s[0, :, :31] for s in (query, key, value)), 30)
    torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=1e-4)


def test_a_prompt_in_chunks_equals_forwards_of_those_chunks(tiny_model):
    ids = torch.randint(2, 64, (1, 70), generator=torch.Generator().manual_seed(5))
    logits = []
    with torch.no_grad():
        for size in (70, 16):
            policy = TokenSelect(n_init=2, k=3, n_local=4, chunk=16, dense_prompt=False)
            cache = policy.cache(tiny_model)
            for at in range(0, 70, size):
                last = tiny_model(ids[:, at : at + size], past_key_values=cache).logits
            logits.append(last[:, -6:])
        dense = tiny_model(ids, past_key_values=TokenSelect(2, 3, 4).cache(tiny_model)).logits
    torch.testing.assert_close(logits[0], logits[1], atol=1e-4, rtol=1e-4)
    assert (logits[0] - dense[:, -6:]).abs().max() > 1e-3


def test_padding_in_a_chunked_prompt_is_seen_by_nobody(tiny_llama):
    """With the padding as long as a chunk, a row's chunks are those it has alone."""
    ids = torch.randint(2, 64, (2, 64), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(ids)
    mask[1, :16] = 0
    policy = TokenSelect(n_init=2, k=3, n_local=4, chunk=16, dense_prompt=False)
    position = (mask.cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        cache = policy.cache(tiny_llama)
        both = tiny_llama(ids, attention_mask=mask, position_ids=position, past_key_values=cache)
        alone = tiny_llama(ids[1:, 16:], past_key_values=policy.cache(tiny_llama))
        first = tiny_llama(ids[:1], past_key_values=policy.cache(tiny_llama))
    torch.testing.assert_close(both.logits[1, 16:], alone.logits[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(both.logits[0], first.logits[0], atol=1e-4, rtol=1e-4)


def test_scores_in_blocks_are_those_at_once():
    query, key, _ = drawn(1024, rows=2)
    blocks = scores(query[:, :, 0], key)
    torch.testing.assert_close(blocks, query[:, :, 0].unflatten(1, (2, 3)) @ key.mT)


def test_an_ample_budget_equals_full_attention_and_bfloat16_stays_close():
    query, key, value = drawn(40)
    full = TokenSelect(n_init=10, k=20, n_local=10).layer()
    found = step_by_step(full, query, key, value, 10)
    causal = torch.ones(40, 40, dtype=torch.bool).tril()[10:]
    expected = full_attention(query[0, :, 10:], key[0], value[0], causal)
    torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=1e-4)
    half = step_by_step(SMALL.layer(), *(s.bfloat16() for s in (query, key, value)), 10)
    assert half.dtype == torch.bfloat16
    again = step_by_step(SMALL.layer(), *(s.bfloat16().float() for s in (query, key, value)), 10)
    torch.testing.assert_close(half.float(), again, atol=0.03, rtol=0.03)


def test_softcapped_attention_goes_the_same_way():
    query, key, value = drawn(40)
    layer = SMALL.layer()
    options = {"scaling": 0.5, "softcap": 1e6, "dropout": 0.0}  # a cap that caps nothing
    plain = step_by_step(SMALL.layer(), query, key, value, 20)
    outputs = []
    for start, stop in [(0, 20), *((t, t + 1) for t in range(20, 40))]:
        layer.update(key[:, :, start:stop], value[:, :, start:stop])
        part = query[:, :, start:stop]
        outputs.append(
            layer.attend(part, layer.keys, layer.values, GivenMask(None, part), **options)
        )
        layer.waiting = False
    torch.testing.assert_close(torch.cat(outputs[1:], 1), plain, atol=1e-3, rtol=1e-3)


def test_a_size_is_shared_out_and_impossible_settings_are_refused():
    assert TokenSelect.of_size(2048) == TokenSelect(n_init=128, k=1408, n_local=512)
    assert TokenSelect.of_size(1) == TokenSelect(n_init=0, k=0, n_local=1)
    share = TokenSelect.of_size(0.32).budget(torch.tensor([100]))
    assert [int(n) for n in share] == [2, 22, 8]
    for wrong in (0, -3, 1.5, 0.0):
        with pytest.raises(InputError):
            TokenSelect.of_size(wrong)
    for options in ({"n_local": 0}, {"k": -1}, {"pool": 4}, {"chunk": 0}, {"n_init": 1.5}):
        with pytest.raises(InputError):
            TokenSelect(**options)


def test_prompt_lookup_of_transformers_works_on_it(tiny_model):
    """Assisted decoding takes tokens back at every step, sliding windows of Gemma included."""
    ids = torch.randint(2, 12, (1, 30), generator=torch.Generator().manual_seed(1))
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    plain = tiny_model.generate(ids, **options)
    for policy in (TokenSelect(), TokenSelect(n_init=4, k=24, n_local=16)):
        cache = policy.cache(tiny_model)
        found = tiny_model.generate(
            ids, past_key_values=cache, prompt_lookup_num_tokens=3, **options
        )
        assert torch.equal(found, plain)


@pytest.mark.model
def test_smollm2_generates_the_same_from_an_ample_selection(smollm2):
    """Nine query heads, three key heads, padding; the whole budget is more than the text."""
    model, tokenizer = smollm2
    inputs = tokenizer(["The capital of France is", "One, two,"], return_tensors="pt", padding=True)
    options = {"max_new_tokens": 6, "do_sample": False}
    model.set_attn_implementation("sdpa")
    plain = model.generate(**inputs, **options)
    try:
        cache = TokenSelect().cache(model)
        assert torch.equal(model.generate(**inputs, past_key_values=cache, **options), plain)
    finally:
        model.set_attn_implementation("sdpa")
