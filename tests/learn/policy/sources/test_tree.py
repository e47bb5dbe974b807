"""Trees of completions: siblings share what came before they parted, leaves follow the policy."""

import itertools

import pytest
import torch

from tokenry.core.errors import InputError
from tokenry.lab.toy_model import toy_model
from tokenry.learn.policy.rollouts import RolloutSettings
from tokenry.learn.policy.sources.base import Prompts
from tokenry.learn.policy.sources.tree import Tree

END = 0


def prompts(count, ends=(END,)):
    ids = torch.full((count, 1), 3)
    return Prompts(ids, torch.ones_like(ids, dtype=torch.bool), ends)


def drawn(source, model, count, samples, length, ends=(END,), seed=0):
    torch.manual_seed(seed)
    return source(model, prompts(count, ends), RolloutSettings(samples, length))


def texts(batch):
    rows = zip(batch.ids, batch.target, batch.column("node"), strict=True)
    return [(ids[own].tolist(), node[own].tolist()) for ids, own, node in rows]


@pytest.fixture(scope="module")
def model():
    return toy_model(4, 12, seed=1, width=16).eval()


def test_leaves_part_every_segment_and_share_the_nodes_before():
    """Without ends: 2^3 leaves of segments 2, 2 and the rest."""
    model = toy_model(6, 12, seed=0, width=16).eval()
    batch = drawn(Tree(branching=2, segment=2), model, 2, 8, 7, ends=())
    assert batch.group.tolist() == [0] * 8 + [1] * 8
    rows = texts(batch)
    assert all(len(text) == 7 for text, _ in rows)
    for first, second in itertools.combinations(range(16), 2):
        (text, node), (other, its) = rows[first], rows[second]
        shared = [a == b for a, b in zip(node, its, strict=True)]
        depth = 0
        if first // 8 == second // 8:  # of one prompt: which ancestors they have in common
            depth = 3 - (first % 8 ^ second % 8).bit_length()
        assert shared == [True] * (2 * depth) + [False] * (7 - 2 * depth)
        assert all(a == b for a, b, same in zip(text, other, shared, strict=True) if same)
    assert len({n for _, node in rows for n in node}) == 2 * (2 + 4 + 8)


def test_a_prefix_that_has_ended_has_all_its_leaves_alike(model):
    batch = drawn(Tree(branching=2, segment=1), model, 200, 4, 4)
    rows = texts(batch)
    ended = 0
    for tree in range(200):
        leaves = rows[4 * tree : 4 * tree + 4]
        for one, other in (leaves[:2], leaves[2:]):
            assert one[0][0] == other[0][0]
            if one[0][0] == END:
                ended += 1
                assert one == other == ([END], one[1])
            else:
                assert one[1][1] != other[1][1]
    assert ended > 20
    assert len(batch.ids) == 800


@pytest.mark.parametrize("leaf", [0, 3])
def test_every_leaf_by_itself_is_a_sample_of_the_policy(model, leaf):
    """4,000 trees against the exact probabilities of the texts (false alarms < 1e-6)."""
    batch = drawn(Tree(branching=2, segment=1), model, 4000, 4, 2, seed=5)
    found = [tuple(text) for text, _ in texts(batch)][leaf::4]
    with torch.no_grad():
        first = model(torch.tensor([[3]])).logits[0, -1].softmax(-1)
        second = [model(torch.tensor([[3, t]])).logits[0, -1].softmax(-1) for t in range(4)]
    truth = {(END,): float(first[END])}
    truth |= {(t, u): float(first[t] * second[t][u]) for t in range(1, 4) for u in range(4)}
    assert sum(truth.values()) == pytest.approx(1, abs=1e-5)
    for text, p in truth.items():
        share = found.count(text) / len(found)
        assert abs(share - p) < 6 * (p * (1 - p) / len(found)) ** 0.5 + 1e-3


def test_the_limit_holds_wherever_the_tree_parts(model):
    batch = drawn(Tree(branching=2, segment=3), model, 4, 8, 4, ends=())
    assert batch.target.sum(-1).tolist() == [4] * 32
    assert len({tuple(node) for _, node in texts(batch)}) == 16  # the third parting has no tokens


@pytest.mark.parametrize("samples", [1, 3, 6])
def test_leaves_that_no_tree_has_are_refused(model, samples):
    with pytest.raises(InputError, match=f"samples={samples}"):
        drawn(Tree(), model, 1, samples, 4)
    assert Tree(branching=3).depth(9) == 2
    for wrong in ({"branching": 1}, {"segment": 0}):
        with pytest.raises(InputError):
            Tree(**wrong)
