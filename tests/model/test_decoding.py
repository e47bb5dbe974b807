"""DecodingState against plain forward passes over whole sequences."""

import pytest
import torch

from tokenry.core.errors import InputError, ShapeError
from tokenry.model.decoding import DecodingState, ancestor_mask

CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def ids_of(*shape, seed=0):
    return torch.randint(2, 64, shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def whole(model, row):
    return model(input_ids=torch.as_tensor(row)[None]).logits[0, -1]


def test_appending_equals_reading_the_whole_prefix(tiny_model):
    ids = ids_of(2, 20)  # longer than the tiny Gemma's window of 8
    state = DecodingState.start(tiny_model, ids[:, :5])
    for at in range(5, 12):
        state.append(ids[:, at])
    after = state.append(ids[:, 12:20])
    assert after.shape == (2, 8, 64)
    assert state.length == 20
    for row in range(2):
        torch.testing.assert_close(state.logits[row], whole(tiny_model, ids[row]), **CLOSE)
        torch.testing.assert_close(after[row, 2], whole(tiny_model, ids[row, :15]), **CLOSE)


def test_left_padding_changes_nothing(tiny_model):
    long, short = ids_of(14), ids_of(9, seed=1)
    ids = torch.zeros(2, 14, dtype=torch.long)
    attention = torch.zeros(2, 14, dtype=torch.bool)
    ids[0], attention[0] = long, True
    ids[1, 5:], attention[1, 5:] = short, True
    state = DecodingState.start(tiny_model, ids, attention)
    state.append(torch.tensor([7, 8]))
    torch.testing.assert_close(state.logits[1], whole(tiny_model, [*short.tolist(), 8]), **CLOSE)
    torch.testing.assert_close(state.logits[0], whole(tiny_model, [*long.tolist(), 7]), **CLOSE)


def test_forked_and_reordered_rows_go_their_own_ways(tiny_model):
    ids = ids_of(2, 10)
    state = DecodingState.start(tiny_model, ids)
    state.fork(2)
    state.select(torch.tensor([3, 0, 1]))
    state.append(torch.tensor([5, 6, 7]))
    for row, (prefix, token) in enumerate([(1, 5), (0, 6), (0, 7)]):
        expected = whole(tiny_model, [*ids[prefix].tolist(), token])
        torch.testing.assert_close(state.logits[row], expected, **CLOSE)


def test_cropping_takes_tokens_back(tiny_model):
    ids = ids_of(1, 16)
    state = DecodingState.start(tiny_model, ids)
    state.crop(6)
    with pytest.raises(InputError, match="after crop"):
        _ = state.logits
    state.append(torch.tensor([9]))
    expected = whole(tiny_model, [*ids[0, :10].tolist(), 9])
    torch.testing.assert_close(state.logits[0], expected, **CLOSE)
    with pytest.raises(InputError, match="cannot forget 99"):
        state.crop(99)


def test_a_copy_is_independent(tiny_model):
    state = DecodingState.start(tiny_model, ids_of(1, 6))
    twin = state.copy()
    before = twin.logits.clone()
    state.append(torch.tensor([3]))
    assert torch.equal(twin.logits, before)
    twin.append(torch.tensor([3]))
    torch.testing.assert_close(twin.logits, state.logits)


@pytest.mark.parametrize("padding", [0, 4])
def test_each_tree_node_sees_its_own_path(tiny_model, padding):
    prefix = ids_of(11)
    ids = torch.cat([torch.zeros(padding, dtype=torch.long), prefix])[None]
    attention = (torch.arange(ids.shape[1]) >= padding)[None]
    state = DecodingState.start(tiny_model, ids, attention)
    #        0 -> 1 -> 3 -> 5,  0 -> 2 -> 4,  and a second root, 6
    parents = torch.tensor([-1, 0, 0, 1, 2, 3, -1])
    tokens = ids_of(7, seed=2)
    logits = state.tree(tokens, parents)
    paths = [[0], [0, 1], [0, 2], [0, 1, 3], [0, 2, 4], [0, 1, 3, 5], [6]]
    for node, path in enumerate(paths):
        expected = whole(tiny_model, [*prefix.tolist(), *tokens[path].tolist()])
        torch.testing.assert_close(logits[node], expected, **CLOSE)


def test_keeping_a_path_leaves_the_cache_of_sequential_decoding(tiny_model):
    ids, tokens = ids_of(1, 11), ids_of(5, seed=3)
    state = DecodingState.start(tiny_model, ids)
    state.tree(tokens, torch.tensor([-1, 0, 0, 2, 3]))
    state.keep(torch.tensor([0, 2, 3]))
    plain = DecodingState.start(tiny_model, ids)
    plain.append(tokens[[0, 2, 3]][None])
    assert state.length == plain.length == 14
    torch.testing.assert_close(state.logits, plain.logits, **CLOSE)
    for ours, theirs in zip(state.cache.layers, plain.cache.layers, strict=True):
        torch.testing.assert_close(ours.keys, theirs.keys, **CLOSE)
        torch.testing.assert_close(ours.values, theirs.values, **CLOSE)
    state.append(torch.tensor([4]))
    plain.append(torch.tensor([4]))
    torch.testing.assert_close(state.logits, plain.logits, **CLOSE)


def test_every_row_of_a_batch_grows_its_own_tree_and_goes_on_from_its_own_path(tiny_model):
    """Rows of different lengths, trees and paths: each equals that row alone, also after another
    round on top of the holes that the shorter paths leave."""
    prefixes = [ids_of(4, seed=1), ids_of(9, seed=2), ids_of(6, seed=3)]
    width = max(map(len, prefixes))
    ids = torch.stack([torch.nn.functional.pad(p, (width - len(p), 0)) for p in prefixes])
    attention = torch.stack([torch.arange(width) >= width - len(p) for p in prefixes])
    state = DecodingState.start(tiny_model, ids, attention)
    texts = [prefix.tolist() for prefix in prefixes]
    parents = torch.tensor([[-1, 0, 1, 1, 3], [-1, 0, 0, -1, -1], [-1, -1, -1, -1, -1]])
    paths = [[[0, 1, 3, 4], [0, 2, -1, -1], [0, -1, -1, -1]], [[0, 1, 2], [0, -1, -1], [0, 1, -1]]]
    parents = [parents, torch.tensor([[-1, 0, 1], [-1, 0, 0], [-1, 0, 0]])]
    for step in range(2):
        tokens = ids_of(*parents[step].shape, seed=5 + step)
        logits = state.tree(tokens, parents[step])
        for row, path in enumerate(paths[step]):
            kept = [node for node in path if node >= 0]
            for end in range(1, len(kept) + 1):
                text = [*texts[row], *tokens[row, kept[:end]].tolist()]
                torch.testing.assert_close(
                    logits[row, kept[end - 1]], whole(tiny_model, text), **CLOSE
                )
            texts[row] += tokens[row, kept].tolist()
        state.keep(torch.tensor(paths[step]))
        for row, text in enumerate(texts):
            torch.testing.assert_close(state.logits[row], whole(tiny_model, text), **CLOSE)
    state.select(torch.tensor([2, 0]))
    logits = state.tree(torch.tensor([[7], [8]]), torch.tensor([[-1], [-1]]))
    torch.testing.assert_close(logits[0, 0], whole(tiny_model, [*texts[2], 7]), **CLOSE)
    torch.testing.assert_close(logits[1, 0], whole(tiny_model, [*texts[0], 8]), **CLOSE)


def test_keep_without_a_tree_is_refused(tiny_model):
    state = DecodingState.start(tiny_model, ids_of(1, 3))
    with pytest.raises(InputError, match=r"follows a tree\(\)"):
        state.keep(torch.tensor([0]))


def test_ancestors_and_depths():
    mask, depth = ancestor_mask(torch.tensor([-1, 0, 1, 0, -1]))
    assert depth.tolist() == [0, 1, 2, 1, 0]
    assert mask.int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 0, 0, 1, 0],
        [0, 0, 0, 0, 1],
    ]
    with pytest.raises(ShapeError, match="before its child"):
        ancestor_mask(torch.tensor([1, -1]))


def test_bad_shapes_are_named(tiny_model):
    with pytest.raises(ShapeError, match="padded on the left"):
        DecodingState.start(tiny_model, ids_of(1, 3), torch.tensor([[1, 1, 0]]))
    state = DecodingState.start(tiny_model, ids_of(2, 3))
    with pytest.raises(ShapeError, match=r"2 prefixes need tokens and parents \[2, M\]"):
        state.tree(torch.tensor([1]), torch.tensor([-1]))
    with pytest.raises(ShapeError, match=r"tokens must be \[2\]"):
        state.append(torch.tensor([1, 2, 3]))
