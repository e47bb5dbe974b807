"""Balanced k-means: sizes, groups that lie apart, worked assignments, errors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from tokenry.core.balanced_clusters import _balanced, balanced_kmeans
from tokenry.core.errors import InputError, ShapeError


def generator(seed):
    return torch.Generator().manual_seed(seed)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 24), st.data())
def test_sizes_differ_by_one_at_most_and_cover_all(count, data):
    clusters = data.draw(st.integers(1, count))
    seed = data.draw(st.integers(0, 99))
    points = torch.randn(count, 3, generator=generator(seed))
    assigned, centroids = balanced_kmeans(points, clusters, generator=generator(seed))
    sizes = assigned.bincount(minlength=clusters)
    assert sizes.sum() == count
    assert sizes.max() - sizes.min() <= 1
    assert sizes.max() - sizes.min() == (count % clusters > 0)
    unit = normalize(points, dim=-1)
    means = [unit[assigned == k].mean(0) for k in range(clusters)]
    torch.testing.assert_close(centroids, torch.stack(means))


def test_groups_that_lie_apart_are_the_clusters_whatever_the_lengths():
    draws = generator(0)
    axes = torch.eye(3).repeat_interleave(6, 0)
    points = (axes + 0.05 * torch.randn(18, 3, generator=draws)) * torch.rand(
        18, 1, generator=draws
    ).add(0.1)
    order = torch.randperm(18, generator=draws)
    for seed in range(5):
        assigned, _ = balanced_kmeans(points[order], 3, generator=generator(seed))
        groups = [set(assigned[order // 6 == group].tolist()) for group in range(3)]
        assert all(len(group) == 1 for group in groups)
        assert len(set.union(*groups)) == 3
        again, _ = balanced_kmeans(points[order], 3, generator=generator(seed))
        assert torch.equal(again, assigned)


def test_worked_assignments():
    # by share: 0: (.4, .3, .2, .1), 1: (.3, .3, .2, .2); point 1 of 0 before that of 1
    similar = torch.tensor([[4.0, 3.0, 2.0, 1.0], [0.6, 0.6, 0.4, 0.4]])
    assert _balanced(similar).tolist() == [0, 0, 1, 1]
    # a row counts by its share, not by its size: 1's .7 is the largest
    assert _balanced(torch.tensor([[9.0, 8.0], [0.7, 0.3]])).tolist() == [1, 0]
    # five points: two each, and the last joins the better of the two full clusters
    similar = torch.tensor([[5.0, 4.0, 0.1, 0.2, 0.3], [0.1, 0.2, 5.0, 4.0, 0.25]])
    assert _balanced(similar).tolist() == [0, 0, 1, 1, 0]
    # two are left of five by three clusters, and no cluster takes both
    similar = torch.tensor([[9.0, 8.0, 7.0, 1.0, 1.0], [1.0, 1.0, 1.0, 9.0, 1], [1, 1, 1, 1.0, 9]])
    assert sorted(_balanced(similar).bincount().tolist()) == [1, 2, 2]
    assert _balanced(-torch.ones(2, 4)).bincount().tolist() == [2, 2]


def test_copies_are_split_too():
    assigned, _ = balanced_kmeans(torch.ones(7, 2), 3, generator=generator(0))
    assert sorted(assigned.bincount(minlength=3).tolist()) == [2, 2, 3]


def test_iterations_end_where_nothing_moves():
    points = torch.randn(40, 4, generator=generator(3))
    one, _ = balanced_kmeans(points, 4, iterations=1, tolerance=0, generator=generator(0))
    many, _ = balanced_kmeans(points, 4, iterations=50, generator=generator(0))
    stopped, _ = balanced_kmeans(points, 4, tolerance=1e9, generator=generator(0))
    assert torch.equal(one, stopped)
    assert not torch.equal(one, many)


@pytest.mark.parametrize(
    ("points", "given"),
    [
        (torch.ones(3, 2), {"clusters": 4}),
        (torch.ones(3, 2), {"clusters": 0}),
        (torch.ones(3, 2), {"clusters": 1, "iterations": 0}),
        (torch.ones(3, 2), {"clusters": 1, "tolerance": -1}),
        (torch.zeros(3, 2), {"clusters": 1}),
        (torch.full((3, 2), torch.nan), {"clusters": 1}),
    ],
)
def test_what_cannot_be_is_refused(points, given):
    with pytest.raises(InputError):
        balanced_kmeans(points, **given)
    with pytest.raises(ShapeError):
        balanced_kmeans(torch.ones(3), 1)
