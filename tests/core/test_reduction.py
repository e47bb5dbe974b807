"""Reductions as matrices: what their rows are, what returns, and attention over merged tokens."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenry.core.errors import InputError, ShapeError
from tokenry.core.reduction import (
    Merging,
    Pooling,
    Selection,
    attention_pooling,
    bipartite_soft_matching,
    merge_to,
    proportional_attention,
    select_top,
)


def tokens(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


sizes = st.tuples(st.integers(0, 10**6), st.integers(2, 24), st.data())


@given(sizes)
def test_selection_has_one_hot_distinct_rows(drawn):
    seed, length, data = drawn
    budget = data.draw(st.integers(1, length))
    x = tokens(seed, 3, length, 5)
    kept = select_top(tokens(seed + 1, 3, length), budget)
    matrix = kept.matrix()
    identity = torch.eye(budget).expand(3, budget, budget)
    assert torch.equal(matrix @ matrix.transpose(-1, -2), identity)
    torch.testing.assert_close(kept.apply(x), matrix @ x)
    returned = kept.expand(kept.apply(x))
    inside = torch.zeros(3, length, dtype=torch.bool).scatter(-1, kept.index, True)
    assert torch.equal(returned[inside], x[inside])
    assert not returned[~inside].any()
    assert torch.equal(kept.expand(kept.apply(x), base=x), x)


@given(sizes)
def test_merging_has_disjoint_rows_of_sum_one(drawn):
    seed, length, data = drawn
    merges = data.draw(st.integers(0, length // 2))
    x = tokens(seed, 2, length, 4)
    merged = bipartite_soft_matching(x, merges)
    matrix = merged.matrix()
    assert matrix.shape == (2, length - merges, length)
    torch.testing.assert_close(matrix.sum(-1), torch.ones(2, length - merges))
    assert ((matrix > 0).sum(-2) == 1).all()
    assert (merged.sizes.sum(-1) == length).all()
    torch.testing.assert_close(merged.apply(x), matrix @ x)
    returned = merged.expand(merged.apply(x))
    for row in range(2):
        for group in range(length - merges):
            members = returned[row, merged.groups[row] == group]
            torch.testing.assert_close(members, members[:1].expand_as(members))
    assert (merged.positions().diff(dim=-1) > 0).all()  # the order of first members


@given(sizes)
def test_matching_is_that_of_a_plain_loop(drawn):
    seed, length, data = drawn
    merges = data.draw(st.integers(0, length // 2))
    x = tokens(seed, length, 4)
    unit = torch.nn.functional.normalize(x, dim=-1)
    pairs = []
    for i in range(0, length, 2):
        value, j = max((float(unit[i] @ unit[j]), j) for j in range(1, length, 2))
        pairs.append((value, i, j))
    groups = {i: {i} for i in range(length)}
    for _, i, j in sorted(pairs, reverse=True)[:merges]:
        groups[j] |= groups.pop(i)
    expected = sorted(sorted(members) for members in groups.values())
    found = bipartite_soft_matching(x, merges).groups
    got = [sorted((found == g).nonzero()[:, 0].tolist()) for g in range(length - merges)]
    assert got == expected


def test_no_merges_is_the_identity():
    x = tokens(0, 7, 3)
    assert torch.equal(bipartite_soft_matching(x, 0).apply(x), x)


def test_identical_tokens_merge_first():
    x = tokens(1, 10, 6)
    x[7] = x[2]
    merged = bipartite_soft_matching(x, 1)
    assert merged.groups[2] == merged.groups[7]
    assert sorted(merged.sizes.tolist()) == [1] * 8 + [2]
    torch.testing.assert_close(merged.apply(x)[merged.groups[2]], x[2])


def test_merging_twice_is_the_mean_over_the_originals():
    x = tokens(2, 3, 4)
    first = Merging(torch.tensor([0, 0, 1]))
    second = Merging(torch.tensor([0, 0]), first.sizes)
    torch.testing.assert_close(second.apply(first.apply(x))[0], x.mean(0))
    assert second.sizes.tolist() == [3]
    torch.testing.assert_close(second.matrix() @ first.matrix(), torch.full((1, 3), 1 / 3))


@pytest.mark.parametrize("budget", [1, 3, 5, 16])
def test_merging_down_to_a_budget(budget):
    x = tokens(3, 2, 16, 4)
    merged = merge_to(x, budget)
    assert merged.apply(x).shape == (2, budget, 4)
    assert (merged.sizes.sum(-1) == 16).all()
    # means over the originals, in however many steps
    torch.testing.assert_close(merged.matrix() @ x, merged.apply(x))


def test_protected_tokens_stay_alone():
    x = tokens(4, 9, 4)
    x[:] = x[0]  # all alike: everything would merge
    merged = bipartite_soft_matching(x, 3, protect=(0, 3))
    for place in (0, 3):
        assert (merged.groups == merged.groups[place]).sum() == 1
    down = merge_to(tokens(5, 20, 4), 6, protect=(0, 19))
    for place in (0, 19):
        assert (down.groups == down.groups[place]).sum() == 1
    assert 0 in select_top(torch.arange(9.0), 3, protect=(0,)).index


def test_proportional_attention_is_attention_over_the_originals():
    distinct = tokens(6, 2, 5, 8)
    counts = torch.tensor([3, 1, 4, 1, 2])
    key = distinct.repeat_interleave(counts, dim=-2)
    value = tokens(7, 2, 5, 8).repeat_interleave(counts, dim=-2)
    query = tokens(8, 2, 6, 8)
    merged = Merging(torch.arange(5).repeat_interleave(counts).expand(2, -1))
    plain = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    mine = proportional_attention(query, merged.apply(key), merged.apply(value), merged.sizes)
    torch.testing.assert_close(mine, plain)
    unweighted = proportional_attention(
        query, merged.apply(key), merged.apply(value), torch.ones(2, 5)
    )
    assert not torch.allclose(unweighted, plain, atol=1e-3)


def test_pooling_mixes_and_gives_back():
    x = tokens(9, 2, 12, 4)
    pooled = attention_pooling(x[:, ::4], x)
    assert pooled.matrix().shape == (2, 3, 12)
    torch.testing.assert_close(pooled.matrix().sum(-1), torch.ones(2, 3))
    torch.testing.assert_close(pooled.sizes.sum(-1), torch.full((2,), 12.0))
    torch.testing.assert_close(pooled.apply(x), pooled.weights @ x)
    # a pooling that is a merging gives back what the merging does
    merged = Merging(torch.tensor([0, 1, 1, 0, 2]))
    y = tokens(10, 3, 4)
    torch.testing.assert_close(Pooling(merged.matrix()).expand(y), merged.expand(y))
    torch.testing.assert_close(Pooling(merged.matrix()).sizes, merged.sizes)


def test_half_precision_is_kept_and_summed_in_float32():
    x = tokens(11, 64, 8).bfloat16()
    merged = Merging(torch.zeros(64, dtype=torch.long))
    assert merged.apply(x).dtype == torch.bfloat16
    torch.testing.assert_close(merged.apply(x)[0], x.float().mean(0).bfloat16())


def test_impossible_reductions_say_so():
    x = tokens(0, 8, 4)
    for merges in (-1, 5):
        with pytest.raises(InputError, match="between 0 and 4"):
            bipartite_soft_matching(x, merges)
    with pytest.raises(InputError, match=r"protected places \[8\]"):
        bipartite_soft_matching(x, 1, protect=(8,))
    with pytest.raises(InputError, match="between 0 and 0"):
        bipartite_soft_matching(x, 1, protect=(1, 3, 5, 7))
    for budget in (0, 9):
        with pytest.raises(InputError, match="budget"):
            select_top(x[:, 0], budget)
        with pytest.raises(InputError, match="budget"):
            merge_to(x, budget)
    with pytest.raises(ShapeError, match="distinct and rising"):
        Selection(torch.tensor([3, 3]), 8)
    with pytest.raises(ShapeError, match=r"0\.\.7"):
        Selection(torch.tensor([3, 8]), 8)
    with pytest.raises(ShapeError, match="must have a member"):
        Merging(torch.tensor([0, 2]))
    with pytest.raises(ShapeError, match="sum to 1"):
        Pooling(torch.ones(2, 3))
    with pytest.raises(ShapeError, match="expected"):
        Merging(torch.tensor([0, 1])).apply(x)
