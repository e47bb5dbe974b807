"""Lookahead: what the tries count, what is retrieved from them, and the drafts of a text."""

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenry.core.errors import InputError, VocabularyError
from tokenry.decode.speculation.context import TRUST
from tokenry.decode.speculation.lookahead import BranchMemory, Lookahead, mixed, retrieve
from tokenry.decode.speculation.replay import replay
from tokenry.decode.speculation.speculate import generate_with_drafter
from tokenry.decode.speculation.trie_cache import PRUNE_AFTER, TrieCache
from tokenry.decode.speculation.verify import Accepted
from tokenry.model.decoding import ancestor_mask

PROMPT = [5, 17, 9, 33, 21, 9, 40, 12, 3, 28, 51]
A, B, C, D = 1, 2, 3, 4


def filled(*texts, length=12, **limits):
    cache = TrieCache(length, **limits)
    for text in texts:
        cache.put(text)
    return cache


def branches(node, path=()):
    """{path: count} below a node."""
    found = {}
    for token, child in node.children.items():
        found[(*path, token)] = child.count
        found |= branches(child, (*path, token))
    return found


def contents(cache):
    return {token: branches(tree) for token, tree in cache.trees.items()}


def paths(tree):
    found = [()]
    for token, parent in zip(tree.tokens[1:], tree.parents[1:], strict=True):
        found.append((*found[parent], token))
    return found


# ---- the trie


def test_branches_are_what_followed_each_token():
    cache = filled([A, B, C, D], length=2)
    assert contents(cache) == {
        A: {(B,): 1, (B, C): 1},
        B: {(C,): 1, (C, D): 1},
        C: {(D,): 1},
        D: {},
    }
    tree = retrieve(TrieCache(), cache, [A, B], depth=2)
    assert paths(tree) == [(), (C,), (C, D)]  # too little behind "a b": "b" alone is asked
    cache.trees.pop(B)
    assert paths(retrieve(TrieCache(), cache, [A, B], depth=2)) == [(), (C,)]


def test_the_same_text_twice_counts_two_and_survives_one_pruning():
    cache = filled([A, B, C], [A, B, C])
    assert cache.find([A, B, C]).count == 2
    assert cache.nodes == 3
    cache.prune()
    assert cache.find([A, B, C]).count == 1
    cache.prune()
    assert not cache.trees
    assert cache.nodes == 0


def test_pruning_drops_a_branch_where_it_was_seen_once():
    cache = filled([A, B, C], [A, B, D])
    cache.prune([A, 99])
    assert contents(cache)[A] == {(B,): 1}
    assert contents(cache)[B] == {(C,): 1, (D,): 1}
    assert cache.nodes == 3


texts = st.lists(st.integers(0, 3), max_size=25)


@given(texts, st.integers(1, 5))
def test_counts_are_those_of_the_texts_substrings(text, length):
    cache = filled(text, length=length)
    for size in range(2, length + 2):
        for path in itertools.product(range(4), repeat=size):
            occurs = sum(tuple(text[i : i + size]) == path for i in range(len(text)))
            node = cache.find(path)
            assert (node.count if node else 0) == occurs
    assert cache.nodes == sum(tree.size for tree in cache.trees.values())
    assert all(tree.size == len(branches(tree)) for tree in cache.trees.values())


@given(texts, st.lists(st.integers(0, 6), max_size=8), st.integers(1, 5))
def test_a_streamed_text_is_a_whole_one(text, cuts, length):
    cache = TrieCache(length)
    stream = cache.stream()
    start = 0
    for cut in cuts:
        stream.extend(text[start : start + cut])
        start += cut
    stream.extend(text[start:])
    assert contents(cache) == contents(filled(text, length=length))


def test_every_token_costs_at_most_one_node_per_open_branch():
    cache = TrieCache(branch_length=7, tree_nodes=None, max_nodes=None)
    stream = cache.stream()
    for token in range(300):
        before = cache.nodes
        stream.extend([token % 37])
        assert cache.nodes - before <= 7
        assert len(stream.open) <= 7


def test_trees_that_grow_too_large_are_pruned_by_themselves():
    cache = TrieCache(branch_length=2, tree_nodes=20)
    often = [0, 1, 2]
    for number in range(PRUNE_AFTER + 100):
        cache.put([*often, 10 + number])  # 2 is followed by ever new tokens
    assert cache.find([0, 1, 2]).count > 1
    assert cache.trees[2].size < PRUNE_AFTER // 2
    assert cache.nodes == sum(tree.size for tree in cache.trees.values())


def test_all_trees_together_stay_within_their_limit():
    cache = TrieCache(branch_length=3, max_nodes=100)
    stream = cache.stream()
    for token in range(2000):
        stream.extend([(token * token) % 101])
        assert cache.nodes <= 100


def test_the_trie_survives_a_file(tmp_path):
    generator = torch.Generator().manual_seed(0)
    cache = TrieCache(4, tree_nodes=7, max_nodes=None, vocab_size=9)
    cache.tree_nodes = None
    for _ in range(5):
        cache.put(torch.randint(0, 9, (30,), generator=generator).tolist())
    cache.prune([3])
    path = tmp_path / "trie.safetensors"
    cache.save(path)
    loaded = TrieCache.load(path)
    assert contents(loaded) == contents(cache)
    assert list(loaded.trees) == list(cache.trees)
    assert (loaded.nodes, loaded.branch_length, loaded.vocab_size) == (cache.nodes, 4, 9)
    assert (loaded.tree_nodes, loaded.max_nodes) == (None, None)
    assert all(loaded.trees[t].size == cache.trees[t].size for t in cache.trees)
    assert [file.name for file in tmp_path.iterdir()] == ["trie.safetensors"]
    query = [3, 5]
    assert retrieve(TrieCache(), loaded, query) == retrieve(TrieCache(), cache, query)


def test_a_file_that_is_no_trie_is_named(tmp_path):
    path = tmp_path / "trie.safetensors"
    with pytest.raises(InputError, match=r"no file .*trie\.safetensors"):
        TrieCache.load(path)
    path.write_bytes(b"nothing like it")
    with pytest.raises(InputError, match=r"trie\.safetensors is not a file of TrieCache"):
        TrieCache.load(path)
    cache = filled([A, B, C])
    cache.vocab_size = 2  # token 3 is outside
    cache.save(path)
    with pytest.raises(InputError, match="do not form tries"):
        TrieCache.load(path)


# ---- retrieval


def test_the_longer_match_is_used_if_enough_follows_it():
    long = list(range(10, 40))
    outputs = filled([A, B, *long], [C, B, D, D, D], length=13)
    tree = retrieve(TrieCache(), outputs, [A, B])
    assert paths(tree)[1:] == [tuple(long[: depth + 1]) for depth in range(12)]
    both = retrieve(TrieCache(), outputs, [D, B])  # never seen: "b" alone
    assert {path[0] for path in paths(both)[1:]} == {long[0], D}


def test_the_prompt_decides_and_outputs_break_ties():
    prompt = filled([A, B, A, C])
    outputs = filled(*[[A, D]] * 50, [A, C])
    tree = retrieve(prompt, outputs, [A], nodes=3, depth=1)
    assert tree.tokens == (A, C, B, D)
    chain = retrieve(prompt, outputs, [A], nodes=3, depth=1, mode="one")
    assert chain.tokens == (A, C)
    assert retrieve(prompt, outputs, [A], 3, 1, output_weight=1.0).tokens == (A, D, C)


def test_half_of_the_nodes_at_most_are_reserved_for_outputs():
    prompt = filled(*[[A, 10 + n] for n in range(20)])
    outputs = filled(*[[A, 50 + n] for n in range(20)])
    tree = retrieve(prompt, outputs, [A], nodes=8, depth=1)
    assert sum(token >= 50 for token in tree.tokens) == 4
    assert len(tree) == 9


def test_of_equal_nodes_the_deeper_are_drafted():
    outputs = filled([A, *range(10, 30)], [A, *range(30, 50)])
    tree = retrieve(TrieCache(), outputs, [A], nodes=12)
    assert paths(tree)[-1] == tuple(range(10, 22))


def top_nodes(prompt, outputs, query, nodes, depth, weight):
    """By sorting everything that follows the query."""
    places = {}
    for cache, factor in ((prompt, 1 - weight), (outputs, weight)):
        node = cache.find(query)
        for path, count in branches(node).items() if node else ():
            if len(path) <= depth:
                places[path] = places.get(path, 0.0) + factor * count
    return sorted(places.values(), reverse=True)[:nodes]


@given(texts, texts, st.integers(1, 12), st.integers(1, 4))
def test_the_best_nodes_are_found_without_looking_at_all(mine, theirs, nodes, depth):
    prompt, outputs = filled(mine), filled(theirs)
    tree = retrieve(prompt, TrieCache(), [0], nodes, depth)
    assert len(tree) <= nodes + 1
    found = sorted((prompt.find([0, *path]).count for path in paths(tree)[1:]), reverse=True)
    weight = 1e-4
    expected = top_nodes(prompt, TrieCache(), [0], nodes, depth, weight)
    assert [(1 - weight) * count for count in found] == pytest.approx(expected)
    everything = retrieve(prompt, outputs, [0], 10_000, depth)
    assert len(everything) - 1 == len(top_nodes(prompt, outputs, [0], 10_000, depth, weight))


@given(texts, texts, st.lists(st.integers(0, 3), min_size=1, max_size=3), st.integers(0, 12))
def test_drafts_are_trees_in_depth_first_order(mine, theirs, query, nodes):
    prompt, outputs = filled(mine), filled(theirs)
    tree = retrieve(prompt, outputs, query, nodes, 5)
    assert tree.tokens[0] == query[-1]
    assert len(set(paths(tree))) == len(tree) <= nodes + 1
    for path in paths(tree)[1:]:
        assert prompt.find([query[-1], *path]) or outputs.find([query[-1], *path])
    mask, depth = ancestor_mask(torch.tensor(tree.parents))
    assert torch.equal(mask.sum(1), depth + 1)
    assert torch.equal(mask, mask.tril())
    for node in range(1, len(tree)):  # the parent is the node before, or one of its ancestors
        assert tree.parents[node] == node - 1 or mask[node - 1, tree.parents[node]]
    for parent in range(len(tree)):
        children = [n for n in range(len(tree)) if tree.parents[n] == parent]
        assert len({tree.tokens[n] for n in children}) == len(children)


@given(texts, texts, st.lists(st.integers(0, 3), min_size=1, max_size=2))
def test_the_chain_is_a_path_of_the_whole_tree(mine, theirs, query):
    prompt, outputs = filled(mine), filled(theirs)
    chain = retrieve(prompt, outputs, query, 64, 6, mode="one")
    tree = retrieve(prompt, outputs, query, 10_000, 6)
    assert chain.parents == tuple(range(-1, len(chain) - 1))
    assert set(paths(chain)) <= set(paths(tree))
    assert (len(chain) > 1) == (len(tree) > 1)


def test_nothing_known_is_no_draft():
    assert len(retrieve(TrieCache(), TrieCache(), [A, B])) == 1
    assert len(retrieve(filled([A, B]), TrieCache(), [A, B])) == 1  # nothing follows the end


# ---- drafting


@pytest.mark.parametrize("mode", ["hier", "one"])
def test_copying_the_prompt_accepts_whole_branches(tiny_llama, mode):
    prompt = list(range(60))
    drafter = Lookahead(branch_length=12, nodes=12, mode=mode)
    assert replay(tiny_llama, drafter, prompt, prompt[10:50]) == [13, 13, 13]


def test_the_prompt_is_forgotten_with_its_text_and_outputs_are_not(tiny_llama):
    drafter = Lookahead(nodes=20)
    first = drafter.begin(tiny_llama, [A, B, C, D, 20])
    tree = first.draft(A, 9)
    assert paths(tree)[1] == (B,)
    first.update(tree, torch.empty(0), Accepted([0], [30]))
    second = drafter.begin(tiny_llama, [7])
    assert paths(second.draft(B, 9)) == [()]
    third = drafter.begin(tiny_llama, [7])
    assert paths(third.draft(A, 9)) == [(), (30,)]


def test_texts_may_be_drafted_for_side_by_side(tiny_llama):
    drafter = Lookahead(nodes=20)
    one, two = (drafter.begin(tiny_llama, [7]) for _ in range(2))
    one.draft(A, 9)
    two.draft(A, 9)
    for drafted, token in ((one, B), (two, C)):
        drafted.update(drafted.draft(A, 0), torch.empty(0), Accepted([0], [token]))
    assert branches(drafter.memory.outputs.trees[A]) == {(B,): 1, (C,): 1}


def test_generated_tokens_can_be_copied_at_once(tiny_llama):
    text = [10, 11, 12, 13, 14] * 4
    steps = replay(tiny_llama, Lookahead(nodes=12), [7], text)
    assert steps[:5] == [1] * 5  # until the second 10 all is new
    assert sum(steps[5:]) > 2 * len(steps[5:])


@pytest.mark.parametrize("nodes", [None, 30])
def test_a_second_text_takes_fewer_passes(tiny_model, nodes):
    drafter = Lookahead(nodes=nodes)
    cold = generate_with_drafter(tiny_model, PROMPT, drafter, 40, eos_token_id=[])
    if nodes is None:
        drafted = drafter.begin(tiny_model, PROMPT)
        drafted.latency = {}  # every guess pays
        drafted.draft(cold.new_ids[0], 12)
    warm = generate_with_drafter(tiny_model, PROMPT, drafter, 40, eos_token_id=[])
    fresh = generate_with_drafter(
        tiny_model, PROMPT, replace(drafter, memory=BranchMemory()), 40, eos_token_id=[]
    )
    assert warm.ids == cold.ids == fresh.ids
    if nodes is not None:
        assert fresh.accept_lengths == cold.accept_lengths
        assert warm.forward_calls < cold.forward_calls


def test_the_fitted_tree_takes_the_likeliest_continuations_first(tiny_llama):
    prompt = [A, B, C] * 5 + [A, B, D]
    drafted = Lookahead(branch_length=3).begin(tiny_llama, prompt)
    drafted.latency = {}
    tree = drafted.draft(A, 9)
    assert paths(tree)[:4] == [(), (B,), (B, C), (B, C, A)]
    assert max(tree.depths) == 3
    drafted.latency = {1: 1.0, 2: 9.0}
    assert len(drafted.draft(A, 9)) == 1


def test_a_guess_is_trusted_by_the_length_of_its_match(tiny_llama):
    drafted = Lookahead(query_length=2).begin(tiny_llama, [A, B, C, D, A, B])
    drafted.draft(C, 9)
    cursor = drafted.root()
    for length, token in ((2, D), (3, A), (4, B)):  # B C was seen once before, and what followed
        (guess,) = drafted.guesses(cursor)
        assert (guess.token, guess.prob) == (token, pytest.approx(TRUST[length]))
        cursor = drafted.after(guess)
    drafted = Lookahead(query_length=2).begin(tiny_llama, [A, B, C])
    drafted.draft(A, 9)  # C A is new, A alone is not
    (guess,) = drafted.guesses(drafted.root())
    assert (guess.token, guess.prob) == (B, pytest.approx(TRUST[1]))


def test_guesses_that_keep_failing_are_no_longer_made(tiny_llama):
    drafter = Lookahead()
    prompt = [A, B] * 20
    for _ in range(60):
        drafted = drafter.begin(tiny_llama, prompt)
        drafted.latency = {1: 1.0, 2: 1.3}
        tree = drafted.draft(A, 1)
        drafted.update(tree, torch.empty(0), Accepted([0], [50 + len(tree)]))
    assert len(tree) == 1


def test_a_saved_trie_starts_warm(tiny_llama, tmp_path):
    drafter = Lookahead(nodes=30)
    cold = generate_with_drafter(tiny_llama, PROMPT, drafter, 30, eos_token_id=[])
    drafter.memory.outputs.save(tmp_path / "trie")
    warm = Lookahead(nodes=30, memory=BranchMemory(TrieCache.load(tmp_path / "trie")))
    found = generate_with_drafter(tiny_llama, PROMPT, warm, 30, eos_token_id=[])
    assert found.ids == cold.ids
    assert found.forward_calls < cold.forward_calls


def test_a_trie_of_another_vocabulary_is_refused(tiny_llama):
    drafter = Lookahead(memory=BranchMemory(TrieCache(vocab_size=65)))
    with pytest.raises(VocabularyError, match="of 65 tokens, the model has 64"):
        drafter.begin(tiny_llama, PROMPT)


def test_impossible_settings_are_named():
    with pytest.raises(InputError, match=r"Lookahead\.branch_length is 0"):
        Lookahead(branch_length=0)
    with pytest.raises(InputError, match=r"Lookahead\.nodes is -1"):
        Lookahead(nodes=-1)
    with pytest.raises(InputError, match="'par'"):
        Lookahead(mode="par")
    with pytest.raises(InputError, match=r"output_weight is 1\.5; it must be a number in \[0, 1\]"):
        Lookahead(output_weight=1.5)
    with pytest.raises(InputError, match="branch_length is 0"):
        TrieCache(0)
    with pytest.raises(InputError, match="tree_nodes is 0"):
        TrieCache(3, tree_nodes=0)


def test_the_score_is_the_weighted_count():
    from tokenry.decode.speculation.lookahead import TrieCursor

    node, other = filled([A, B]).find([A, B]), filled([A, B], [A, B]).find([A, B])
    assert mixed(TrieCursor(node, other), 0.25) == pytest.approx(0.75 + 0.5)
    assert mixed(TrieCursor(None, other), 0.25) == pytest.approx(0.5)
