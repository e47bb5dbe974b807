"""Segments: the worked chain and tree, telescoping, and sums over siblings."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenry.core.errors import InputError
from tokenry.learn.policy.segments import (
    cutpoints,
    fixed_segments,
    segment_advantages,
    tree_advantages,
    whitened,
)

T = torch.tensor
P = (0.5, 0.8, 0.95, 0.5, 0.4, 0.95, 0.95, 0.95, 0.95, 0.68, 0.95, 0.95, 0.44, 0.95)
START = 2  # prompt tokens before the completion, in these tests


def row(values, fill=0.0):
    return T([[fill] * START + list(values)], dtype=torch.float64)


MASK = T([[False] * START + [True] * len(P)])


def places(boundary):
    """Boundaries counted from the completion's first token; -1 is the prompt's state."""
    return (boundary[0].nonzero()[:, 0] - START).tolist()


def valued(values):
    """value, boundary [1, T] from {place: value}."""
    value, boundary = torch.zeros(MASK.shape).double(), torch.zeros_like(MASK)
    for place, one in values.items():
        value[0, START + place], boundary[0, START + place] = one, True
    return value, boundary


def test_the_worked_chain():
    assert places(cutpoints(row(P, 0.1), MASK, 0.9, 2)) == [-1, 2, 8]
    assert places(cutpoints(row(P, 0.1), MASK, 0.9, 1)) == [-1, 0, 2, 3, 8, 11]
    assert places(cutpoints(row(P, 0.1), MASK)) == [-1, 11]  # K = 5: the tokens 0 and 12
    assert places(cutpoints(row(P, 0.1), MASK, 0.5, 1)) == [3, 11]  # strictly below
    found = segment_advantages(*valued({-1: 1, 2: 7 / 9, 8: 1 / 3}), T([1.0]).double(), MASK)
    wanted = [0.0] * START + [-2 / 9] * 3 + [-4 / 9] * 6 + [2 / 3] * 5
    torch.testing.assert_close(found, T([wanted], dtype=torch.float64))


def test_before_the_first_boundary_there_is_no_segment():
    found = segment_advantages(*valued({2: 0.25, 5: 0.75}), T([1.0]).double(), MASK)
    wanted = [0.0] * (START + 3) + [0.5] * 3 + [0.25] * 8
    torch.testing.assert_close(found, T([wanted], dtype=torch.float64))
    none = segment_advantages(*valued({}), T([1.0]).double(), MASK)
    assert (none == 0).all()


def test_fixed_segments():
    assert places(fixed_segments(MASK, 6)) == [-1, 5, 11]
    assert places(fixed_segments(MASK, 7)) == [-1, 6]
    assert places(fixed_segments(MASK, 99)) == [-1]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.booleans(), min_size=13, max_size=13), st.integers(0, 10**6))
def test_segments_add_up_to_the_reward_less_the_prompts_value(cuts, seed):
    numbers = torch.rand(15, generator=torch.Generator().manual_seed(seed)).tolist()
    inner = {place: numbers[place] for place in range(13) if cuts[place]}
    value, boundary = valued({-1: numbers[13], **inner})
    found = segment_advantages(value, boundary, T([numbers[14]]).double(), MASK)[0, START:]
    starts = [0, *(place + 1 for place in inner)]
    assert sum(found[n].item() for n in starts) == pytest.approx(numbers[14] - numbers[13])


def test_padding_and_other_rows_do_not_matter():
    value, boundary = valued({-1: 1, 2: 7 / 9, 8: 1 / 3})
    alone = segment_advantages(value, boundary, T([1.0]).double(), MASK)
    two = [torch.cat([x.flip(1), x]) for x in (value, boundary, MASK)]
    both = segment_advantages(two[0], two[1], T([3.0, 1.0]).double(), two[2])
    torch.testing.assert_close(both[1:], alone)


# 12 leaves of [[0, 1], [1, 1], [0, [1, 0]]]: a node that ends early has all its leaves alike
NODES = [[1, 4, 4], [1, 4, 4], [1, 5, 5], [1, 5, 5], [2, 6, 6], [2, 6, 6], [2, 7, 7], [2, 7, 7],
         [3, 8, 0], [3, 8, 0], [3, 9, 10], [3, 9, 11]]  # fmt: skip
REWARDS = [0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 1, 0]


def tree(normalize=False, order=None, group=None):
    order = torch.arange(12) if order is None else order
    node = torch.nn.functional.pad(T(NODES), (1, 0))[order]
    mask = node > 0
    group = torch.zeros(12).long() if group is None else group
    return tree_advantages(node, mask, T(REWARDS).double()[order], group[order], normalize)


def test_the_worked_tree():
    advantage, stands = tree()
    wanted = [-0.08333, 0.41667, -0.33333]
    for leaf, edge in ((0, 0), (4, 1), (8, 2)):
        assert advantage[leaf, 1].item() == pytest.approx(wanted[edge], abs=1e-5)
    scaled, _ = tree(normalize=True)
    for leaf, one in ((0, -0.26726), (4, 1.33631), (8, -1.06904)):
        assert scaled[leaf, 1].item() == pytest.approx(one, abs=1e-5)
    second = {4: -0.5, 5: 0.5, 6: 0.0, 7: 0.0, 8: -0.25, 9: 0.25, 10: 0.5, 11: -0.5}
    for leaf, own in enumerate(NODES):
        for place, one in enumerate(own[1:], start=2):
            assert advantage[leaf, place].item() == pytest.approx(second.get(one, 0.0))
    assert stands.sum(0).tolist() == [0, 3, 6, 6]  # 3 + 6 nodes, two of them with two tokens more
    assert stands[[0, 4, 8], 1].all()


def test_children_of_a_node_sum_to_zero_and_order_does_not_matter():
    advantage, _ = tree()
    for rows in ([0, 4, 8], [0, 2], [8, 10]):
        place = 1 if len(rows) == 3 else 2
        assert advantage[rows, place].sum().item() == pytest.approx(0, abs=1e-12)
    order = T([7, 3, 11, 0, 2, 9, 1, 10, 4, 8, 6, 5])
    torch.testing.assert_close(tree(order=order)[0], advantage[order])
    parted = tree(group=T([0] * 4 + [1] * 8))[0]  # other trees, other roots
    assert (parted[:4, 1] == 0).all()
    assert parted[4, 1].item() == pytest.approx(1 - 0.625)


def test_whitening_is_over_the_mask_alone():
    mask = T([[True, True, False], [True, False, False]])
    found = whitened(T([[1.0, 3.0, 99.0], [5.0, 7.0, 7.0]]), mask)
    scale = (8 / 3 + 1e-8) ** -0.5
    torch.testing.assert_close(found, T([[-2 * scale, 0.0, 0.0], [2 * scale, 0.0, 0.0]]))
    assert (whitened(torch.ones(2, 3), mask) == 0).all()
    assert (whitened(torch.ones(2, 3), torch.zeros_like(mask)) == 0).all()


def test_bad_settings_are_refused():
    for wrong in ({"threshold": 0.0}, {"threshold": 1.1}, {"interval": 0}):
        with pytest.raises(InputError):
            cutpoints(row(P), MASK, **wrong)
    with pytest.raises(InputError):
        fixed_segments(MASK, 0)
