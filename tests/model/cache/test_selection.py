"""Sums over selected columns, and what lies behind a buffer's tokens."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenry.model.attention.masks import GivenMask
from tokenry.model.cache.selection import Selection, weighted_sum
from tokenry.model.cache.tokenselect import TokenSelect


@given(
    rows=st.integers(1, 3),
    heads=st.integers(1, 3),
    group=st.integers(1, 3),
    columns=st.integers(1, 7),
    seed=st.integers(0, 99),
)
def test_a_weighted_sum_is_the_product_with_the_gathered_columns(rows, heads, group, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(rows, heads, 9, 4, generator=generator)
    weight = torch.rand(rows, heads, group, columns, generator=generator)
    column = torch.randint(0, 9, (rows, columns), generator=generator)
    found = weighted_sum(weight, column, states)
    for row in range(rows):
        for head in range(heads):
            expected = weight[row, head] @ states[row, head, column[row]]
            torch.testing.assert_close(found[row, head], expected)


def test_a_weighted_sum_has_the_precision_of_its_states():
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(1, 2, 64, 8, generator=generator)
    weight = torch.rand(1, 2, 3, 40, generator=generator).softmax(-1)
    column = torch.arange(40)[None]
    found = weighted_sum(weight, column, states.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(
        found.float(), weighted_sum(weight, column, states), atol=0.02, rtol=0.02
    )


@pytest.mark.parametrize("pool", [0, 3])
def test_what_lies_behind_the_tokens_of_a_buffer_is_never_seen(pool):
    generator = torch.Generator().manual_seed(1)

    def drawn(heads, length):
        return torch.randn(2, heads, length, 8, generator=generator)

    steps = [(drawn(6, n), drawn(2, n), drawn(2, n)) for n in (20, 1, 1, 1)]
    outputs = []
    for junk in (0.0, float("nan"), 1e30):
        layer = TokenSelect(n_init=2, k=3, n_local=4, reuse=2, pool=pool).layer()
        for query, key, value in steps:
            layer.update(key, value)
            for buffer in layer.buffers:
                buffer[:, :, layer.seen :] = junk
            mask = GivenMask(None, query)
            outputs.append(layer.attend(query, layer.keys, layer.values, mask, scaling=0.5))
            layer.waiting = False
    for step in range(4):
        assert outputs[step].isfinite().all()
        assert torch.equal(outputs[step], outputs[step + 4])
        assert torch.equal(outputs[step], outputs[step + 8])


def test_a_threshold_that_no_cosine_reaches_is_not_compared():
    selection = Selection(threshold=2.0)
    asked = torch.ones(1, 4)
    for _ in range(2):
        assert not selection.serves(asked).any()
        ready = torch.ones(1, dtype=torch.bool)
        selection.store(ready, asked, torch.zeros(1, 3, dtype=torch.long), None, ready, 3)
    assert (selection.queries, selection.hits) == (2, 0)
