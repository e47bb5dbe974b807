"""Trees: the paper's template, the choice of its nodes, the size that pays."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenry.core.errors import InputError, ShapeError
from tokenry.decode.speculation.tree import (
    PRIOR_RATES,
    TokenTree,
    TreeTemplate,
    best_size,
    path_probabilities,
    seconds,
)
from tokenry.model.decoding import ancestor_mask

PAPER = TreeTemplate.default()


def test_the_papers_template_has_80_nodes_on_six_levels():
    assert len(PAPER) == 80
    assert [PAPER.depths.count(depth) for depth in range(8)] == [1, 8, 21, 25, 15, 8, 3, 0]
    assert PAPER.breadth == 8
    assert {(0, 0, 0, 0, 0, 0), (0, 0, 0, 1, 0, 0), (5, 0, 0), (7, 0)} <= set(PAPER.paths)


def test_arrays_describe_the_paths():
    for node, path in enumerate(((), *PAPER.paths)):
        parent = PAPER.parents[node]
        assert PAPER.depths[node] == len(path)
        if node:
            assert parent < node
            assert (*((), *PAPER.paths)[parent], PAPER.ranks[node]) == path
    assert PAPER.ancestor_mask.sum(1).tolist() == [depth + 1 for depth in PAPER.depths]
    assert torch.equal(PAPER.ancestor_mask, ancestor_mask(torch.tensor(PAPER.parents))[0])


def test_leaf_paths_run_from_the_root_to_every_leaf():
    covered = set()
    for path in PAPER.leaf_paths:
        assert path[0] == 0
        assert [PAPER.parents[node] for node in path[1:]] == list(path[:-1])
        covered |= set(path)
    assert covered == set(range(81))


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([(0, 1)], r"without its parent \(0,\)"),
        ([(0,), (0,)], "every node once"),
        ([(0,), ()], "root not at all"),
        ([(-1,)], "count from 0"),
    ],
)
def test_a_template_that_is_no_tree_is_refused(paths, message):
    with pytest.raises(InputError, match=message):
        TreeTemplate(tuple(paths))


@given(st.integers(0, 85))
def test_truncating_keeps_a_tree_of_the_most_probable_nodes(nodes):
    worth = path_probabilities(PAPER.parents, [PRIOR_RATES[rank] for rank in PAPER.ranks])
    by_path = dict(zip(PAPER.paths, worth[1:], strict=True))
    kept = PAPER.truncate(nodes)  # a template checks that every parent is there
    assert len(kept) == min(nodes, 80)
    left_out = [by_path[path] for path in PAPER.paths if path not in kept.paths]
    if kept.paths and left_out:
        assert min(by_path[path] for path in kept.paths) >= max(left_out)


def test_no_tree_of_that_size_expects_more_tokens():
    template = TreeTemplate(((0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0)))
    rates = (0.7, 0.4)
    worth = dict(
        zip(
            template.paths,
            path_probabilities(template.parents, [rates[rank] for rank in template.ranks])[1:],
            strict=True,
        )
    )
    for size in range(7):
        trees = [
            paths
            for paths in itertools.combinations(template.paths, size)
            if all(len(path) == 1 or path[:-1] in paths for path in paths)
        ]
        best = max(sum(worth[path] for path in paths) for paths in trees)
        chosen = sum(worth[path] for path in template.truncate(size, rates).paths)
        assert chosen == pytest.approx(best)


def test_the_size_follows_the_latency_curve():
    worth = [0.5, 0.25, 0.125, 0.05]
    assert best_size(worth, {1: 1.0, 2: 2.0}) == 0  # a node costs as much as a pass
    assert best_size(worth, {1: 1.0, 32: 1.0}) == 4  # nodes are free
    assert best_size(worth, {1: 1.0, 2: 1.0, 3: 2.0}) == 1  # the second is free, others are dear
    assert best_size(worth, {}) == 4
    assert best_size([], {1: 1.0}) == 0
    # 1.5 / 1.45 > 1 > 1.75 / 1.9, and the third node is free
    assert best_size(worth, {1: 1.0, 2: 1.45, 3: 1.9, 4: 1.9, 5: 9.0}) == 1


@given(
    st.lists(st.floats(0, 1), max_size=12).map(lambda values: sorted(values, reverse=True)),
    st.dictionaries(st.integers(1, 14), st.floats(0.1, 10), min_size=1),
)
def test_no_other_size_gives_more_expected_tokens_per_second(worth, curve):
    slow_beyond = curve | {20: 1000.0}  # so that extrapolation stays positive
    speeds = [
        (1 + sum(worth[:size])) / seconds(slow_beyond, size + 1) for size in range(len(worth) + 1)
    ]
    assert speeds[best_size(worth, slow_beyond)] == pytest.approx(max(speeds))


def test_the_curve_is_read_by_linear_interpolation():
    curve = {1: 10.0, 3: 20.0, 7: 20.0, 9: 30.0}
    found = [seconds(curve, size) for size in (1, 2, 3, 5, 8, 11)]
    assert found == [10.0, 15.0, 20.0, 20.0, 25.0, 40.0]
    assert seconds({4: 2.0}, 9) == 2.0


def test_a_token_tree_knows_its_children_and_depths():
    tree = TokenTree((5, 7, 8, 7, 7), (-1, 0, 0, 1, 0))
    assert tree.depths == (0, 1, 1, 2, 1)
    assert tree.children == {(0, 7): 1, (0, 8): 2, (1, 7): 3}
    assert TokenTree.chain([3, 4, 5]) == TokenTree((3, 4, 5), (-1, 0, 1))


@pytest.mark.parametrize("parents", [(0, -1), (-1, -1), (-1, 1), (-1, 2)])
def test_a_token_tree_has_one_root_and_parents_first(parents):
    with pytest.raises(ShapeError, match="only root"):
        TokenTree((1, 2), parents)
    with pytest.raises(ShapeError, match="a parent for each token"):
        TokenTree((1,), parents)
