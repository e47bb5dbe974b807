"""Attention of grouped queries: the definition, and the same model."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenry.model.attention import grouped
from tokenry.model.attention.grouped import (
    IMPLEMENTATION,
    MOST_ROWS,
    grouped_attention,
    grouped_queries,
)
from tokenry.model.decoding import DecodingState


def by_definition(query, key, value, seen, scaling):
    """One query and one head at a time, in float64. seen: bool [B, q, k]."""
    B, H, q, _ = query.shape
    group = H // key.shape[1]
    output = torch.zeros(B, q, H, value.shape[-1], dtype=torch.float64)
    for b in range(B):
        for h in range(H):
            logits = query[b, h].double() @ key[b, h // group].double().T * scaling
            probability = logits.masked_fill(~seen[b], -torch.inf).softmax(-1)
            output[b, :, h] = probability @ value[b, h // group].double()
    return output


@settings(max_examples=40, deadline=None)
@given(
    heads=st.integers(1, 3),
    group=st.integers(1, 4),
    q=st.integers(1, 6),
    past=st.integers(0, 9),
    boolean=st.booleans(),
    one_mask=st.booleans(),
    seed=st.integers(0, 99),
)
def test_it_is_attention_by_its_definition(heads, group, q, past, boolean, one_mask, seed):
    generator = torch.Generator().manual_seed(seed)
    B, D, k = 2, 8, past + q
    query = torch.randn(B, heads * group, q, D, generator=generator)
    key, value = torch.randn(2, B, heads, k, D, generator=generator)
    seen = torch.rand(1 if one_mask else B, q, k, generator=generator) < 0.6
    seen[:, torch.arange(q), past + torch.arange(q)] = True
    mask = seen[:, None]
    if not boolean:
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    for _ in range(2):  # the second time with the mask of a group that is already there
        found, _ = grouped_attention(Module(group), query, key, value, mask, scaling=0.3)
        expected = by_definition(query, key, value, seen.expand(B, -1, -1), 0.3)
        torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


class Module:
    """What transformers' own function asks of the layer."""

    is_causal = True

    def __init__(self, group):
        self.num_key_value_groups = group


def test_a_mask_serves_groups_of_several_sizes_and_precisions():
    mask = torch.ones(1, 1, 2, 5, dtype=torch.bool)
    for group, dtype in ((2, torch.float32), (3, torch.float32), (3, torch.bfloat16)):
        found = grouped.repeated(mask, group, dtype)
        assert found.shape == (1, 1, 2 * group, 5)
        assert found.dtype == dtype
        assert grouped.repeated(mask, group, dtype) is found


@pytest.fixture
def model(tiny_model):
    return copy.deepcopy(tiny_model)


@pytest.fixture
def groups(monkeypatch):
    """How many times queries were grouped."""
    calls = []
    repeated = grouped.repeated
    monkeypatch.setattr(grouped, "repeated", lambda *a: calls.append(a) or repeated(*a))
    return calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_reads_trees_of_a_padded_batch_as_before(model, groups, dtype):
    model = model.to(dtype)
    ids = torch.randint(3, 60, (2, 13), generator=torch.Generator().manual_seed(1))
    attention = torch.ones_like(ids)
    attention[1, :4] = 0
    tokens, parents = ids[:, :5], torch.tensor([[-1, 0, 0, 1, 3], [-1, 0, 1, 2, -1]])

    def read():
        state = DecodingState.start(model, ids, attention)
        logits = state.tree(tokens, parents)
        state.keep([[0, 1, 3], [0, 1, -1]])
        return logits, state.append(tokens[:, :2])

    expected = read()
    assert not groups
    with grouped_queries(model):
        found = read()
    assert len(groups) == 3 * len(model.model.layers)  # the short prompt, a tree and two tokens
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)


def test_many_queries_go_the_plain_way(tiny_llama, groups):
    model = copy.deepcopy(tiny_llama)
    ids = torch.zeros(1, MOST_ROWS + 1, dtype=torch.long)
    attention = torch.ones_like(ids)
    attention[0, 0] = 0
    with torch.inference_mode(), grouped_queries(model):
        model(ids, attention_mask=attention)
        assert not groups
        model(ids[:, :5], attention_mask=attention[:, :5])
        assert groups


def test_the_models_attention_is_put_back_also_after_an_error(model):
    before = model.config._attn_implementation

    def fail():
        with grouped_queries(model):
            assert model.config._attn_implementation == IMPLEMENTATION
            with grouped_queries(model):
                pass
            assert model.config._attn_implementation == IMPLEMENTATION
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert model.config._attn_implementation == before == "sdpa"
    model.set_attn_implementation("eager")
    with grouped_queries(model):
        assert model.config._attn_implementation == "eager"  # it was chosen, so it stays
