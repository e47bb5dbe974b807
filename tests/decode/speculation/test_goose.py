"""Goose: the paper's tree, and the mixture that grows."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenry.core.errors import InputError, VocabularyError
from tokenry.decode.speculation import goose
from tokenry.decode.speculation.goose import (
    CopyMemory,
    Goose,
    NGramIndex,
    harmonic_split,
    match_confidence,
    spine_tree,
)
from tokenry.decode.speculation.recycling import AdjacencyMatrix
from tokenry.decode.speculation.speculate import generate_with_drafter
from tokenry.decode.speculation.tree import TokenTree
from tokenry.decode.speculation.verify import Accepted, verify_greedy

PROMPT = [5, 17, 9, 33, 21, 9, 40, 12, 3, 28, 51]


def successors(before, token):
    """Ten successors of any token, ever less likely."""
    return [((token * 7 + before + rank) % 64, 0.5 / (rank + 1)) for rank in range(10)]


def nothing(before, token):
    return []


def test_confidence_values():
    assert match_confidence(0, False) == match_confidence(0, True) == 0
    assert match_confidence(4, False) == pytest.approx(0.3)
    assert match_confidence(8, False) == pytest.approx(0.7)
    assert match_confidence(20, False) == pytest.approx(0.9)
    assert match_confidence(3, True) == 1


def test_harmonic_split_rounds_down_and_leaves_none_without():
    assert harmonic_split(12, 4) == [5, 2, 1, 1]
    assert harmonic_split(1, 3) == [1, 1, 1]
    assert harmonic_split(5, 0) == []


def test_the_spines_share_follows_its_running_acceptance():
    """Below .2, below .4, and above; of 60 nodes without confidence .15, .3 and .5 are spine."""
    chain = list(range(10, 60))
    for acceptance, length in ((0, 9), (0.19, 9), (0.2, 18), (0.39, 18), (0.4, 30), (0.42, 30)):
        tree = spine_tree([3, 4], chain, 0.0, acceptance, 60, nothing)
        assert len(tree) - 1 == length
    for confidence, length in ((0.3, 46), (0.7, 74)):  # 72 (.5 + .15), 88 (.5 + .35)
        tree = spine_tree([3, 4], chain * 2, confidence, 0.42, 60, nothing)
        assert len(tree) - 1 == length


def test_a_branch_is_as_wide_as_its_probability_and_its_depth_allow():
    def four(before, token):  # tokens tell their depth
        depth = token // 100
        return [(100 * (depth + 1) + rank, p) for rank, p in enumerate((0.2, 0.1, 0.1, 0.01))]

    tree = spine_tree([3, 4], [], 0.0, 0.5, 60, four)
    # 4 at the root; then ceil(55 · .2) = 11, at most 10 // 1, and there are 4; and so on
    assert children(tree) == written_children(60, 10, (0.2, 0.1, 0.1, 0.01))
    narrow = spine_tree([3, 4], [], 0.0, 0.5, 60, four, width=4)
    assert children(narrow) == written_children(60, 4, (0.2, 0.1, 0.1, 0.01))
    assert children(narrow) != children(tree)


def children(tree):
    return [sum(parent == node for parent in tree.parents) for node in range(len(tree))]


def written_children(budget, width, probs):
    """Children of every node, breadth first, below a root that has taken all its successors."""
    nodes, at = [(0, None), *[(1, p) for p in probs]], 1
    counts = [len(probs)]
    while at < len(nodes):
        depth, p = nodes[at]
        left = budget - len(nodes)
        wide = 0
        if depth < 6 and left:
            wide = max(1, min(-(-left * p // 1), width // depth, len(probs)))
        counts.append(int(min(wide, left)))
        nodes += [(depth + 1, q) for q in probs[: counts[-1]]]
        at += 1
    return counts


def test_flat_logits_still_fill_the_tree(tiny_llama):
    """Probabilities are those among the kept ten: over a whole vocabulary none reaches .01."""
    drafter = Goose(nodes=60)
    draft = drafter.begin(tiny_llama, PROMPT)
    generator = torch.Generator().manual_seed(0)
    for start in range(0, 64, 16):
        tokens = tuple(range(start, start + 16))
        logits = 0.01 * torch.randn(16, 1000, generator=generator)
        logits[:, 64:] = -0.1  # nearly as likely, and never kept
        tree = TokenTree(tokens, tuple(range(-1, 15)), ("branch",) * 16)
        draft.update(tree, logits, Accepted([0], [1]))
    tree = draft.draft(11, 50)
    assert len(tree) == 60
    rows = [draft.memory.table.probs[token] for token in range(64)]
    assert torch.allclose(torch.stack(rows).sum(1), torch.ones(64))


def test_tokens_and_pairs_are_trusted_by_how_much_they_saw(tiny_llama):
    draft = Goose().begin(tiny_llama, [5])
    draft.memory.table.ids[7, 0], draft.memory.table.probs[7, 0] = 8, 0.5
    draft.draft(7, 5)
    (alone,) = draft.guesses(draft.root())
    assert alone.prob == pytest.approx(0.4 * 0.5)
    draft.memory.file((5, 7), [(9, 0.5)])
    (pair,) = draft.guesses(draft.root())
    assert (pair.token, pair.prob) == (9, pytest.approx(0.6 * 0.5))


def test_the_oldest_pair_is_forgotten_and_one_seen_again_is_new(monkeypatch):
    monkeypatch.setattr(goose, "BIGRAMS", 2)
    memory = CopyMemory()
    for number, pair in enumerate([(1, 1), (2, 2), (1, 1), (3, 3)]):
        memory.file(pair, [(number, 0.5)])
    assert memory.pairs == {(1, 1): [(2, 0.5)], (3, 3): [(3, 0.5)]}


CHAINS = st.lists(st.integers(0, 63), max_size=40)


@given(CHAINS, st.floats(0, 1), st.floats(0, 1), st.integers(1, 60))
def test_no_repeated_child_and_no_node_above_the_budget(chain, confidence, acceptance, budget):
    tree = spine_tree([3, 4], chain, confidence, acceptance, budget, successors)
    children = list(zip(tree.parents[1:], tree.tokens[1:], strict=True))
    assert len(set(children)) == len(children)
    assert len(tree) <= max(1, budget + int(40 * confidence))
    branches = [
        depth for depth, note in zip(tree.depths, tree.notes, strict=True) if note == "branch"
    ]
    spine = sum(note == "spine" for note in tree.notes)
    assert max(branches, default=0) <= max(6, spine + 1)


def test_full_confidence_is_a_chain_and_no_match_a_tree_of_successors():
    chain = list(range(10, 40))
    tree = spine_tree([3, 4], chain * 4, 1.0, 0.5, 60, successors)
    assert tree.tokens[1:] == tuple((chain * 4)[:99])
    assert tree.parents == tuple(range(-1, 99))
    tree = spine_tree([3, 4], [], 0.0, 0.5, 60, successors)
    assert "spine" not in tree.notes
    assert len(tree) == 60
    assert [t for t, parent in zip(tree.tokens, tree.parents, strict=True) if parent == 0] == [
        token for token, _ in successors(3, 4)
    ]


@given(CHAINS, st.integers(0, 10**6))
def test_spine_and_branches_together_accept_what_either_accepts_alone(chain, seed):
    logits = torch.randn(200, 64, generator=torch.Generator().manual_seed(seed))
    tree = spine_tree([3, 4], chain, match_confidence(len(chain), False), 0.5, 60, successors)
    both = len(verify_greedy(tree, logits[: len(tree)]).path)
    for note in ("spine", "branch"):
        # a branch that grows on the spine needs it; alone, there are those at the root
        nodes = [0]
        for node in range(1, len(tree)):
            if tree.notes[node] == note and tree.parents[node] in nodes:
                nodes.append(node)
        alone = tree.select(nodes)
        assert len(verify_greedy(alone, logits[nodes]).path) <= both


def test_a_chain_continues_the_first_occurrence_of_the_longest_end():
    index = NGramIndex([1, 2, 3, 7, 8, 0, 1, 2, 3, 9, 4, 1, 2, 3])
    assert index.chain() == ([7, 8, 0, 1, 2, 3, 9, 4, 1, 2, 3], False)
    agreed = NGramIndex([1, 2, 3, 7, 8, 1, 2, 3, 7, 5, 1, 2, 3])
    assert agreed.chain() == ([7, 8, 1, 2, 3, 7, 5, 1, 2, 3], True)
    assert NGramIndex([1, 2, 3]).chain() == ([], False)  # never the end itself
    longest = NGramIndex([9, 1, 2, 3, 5, 0, 1, 2, 3, 6, 9, 1, 2, 3])
    assert longest.chain()[0][:2] == [5, 0]


def test_an_extended_chain_goes_on_from_its_own_end():
    index = NGramIndex([1, 2, 3, 4] * 2)
    chain, agreed = index.chain()
    assert (chain, agreed) == ([1, 2, 3, 4], False)
    assert index.extended(chain, agreed) == [1, 2, 3, 4] * 25
    assert NGramIndex([1, 2, 3, 9]).extended([5], True) == [5]


def test_pairs_come_before_single_tokens():
    memory = CopyMemory(AdjacencyMatrix(64, 2))
    memory.table.ids[4] = torch.tensor([8, 9])
    memory.table.probs[4] = torch.tensor([0.5, 0.25])
    assert memory.successors(3, 4) == (1, [(8, 0.5), (9, 0.25)])
    memory.file((3, 4), [(7, 0.9)])
    assert memory.successors(3, 4) == (2, [(7, 0.9)])
    assert memory.successors(2, 4)[0] == 1


def test_a_pass_files_every_node_under_its_token_and_its_pair(tiny_llama):
    drafter = Goose(nodes=5)
    draft = drafter.begin(tiny_llama, PROMPT)
    draft.draft(11, 9)
    tree = TokenTree((11, 6, 7), (-1, 0, 0), ("root", "branch", "branch"))
    logits = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    draft.update(tree, logits, verify_greedy(tree, logits))
    memory = drafter.memory
    assert set(memory.pairs) == {(51, 11), (11, 6), (11, 7)}
    for pair, row in zip([(51, 11), (11, 6), (11, 7)], logits, strict=True):
        best = row.topk(10)
        assert [token for token, _ in memory.pairs[pair]] == best.indices.tolist()
        kept = best.values.softmax(-1).tolist()  # among the ten
        assert [p for _, p in memory.pairs[pair]] == pytest.approx(kept)
        assert [token for token, _ in memory.table.row(pair[1])] == best.indices.tolist()


@pytest.mark.parametrize("nodes", [0, 1, 60])
def test_the_papers_tree_writes_the_text_of_plain_decoding(tiny_model, nodes):
    from transformers import GenerationConfig

    ids = torch.tensor([PROMPT])
    settings = GenerationConfig(max_new_tokens=30, do_sample=False)
    expected = tiny_model.generate(ids, generation_config=settings)[0].tolist()
    drafter = Goose(nodes=nodes)
    for _ in range(2):
        found = generate_with_drafter(tiny_model, PROMPT, drafter, 30, eos_token_id=[])
        assert found.ids == expected


def test_copied_and_recycled_guesses_meet(tiny_llama):
    """A guess of both sources is likelier than either makes it alone."""
    drafter = Goose()
    draft = drafter.begin(tiny_llama, [1, 2, 3, 8, 1, 2])
    draft.latency = {}
    drafter.memory.file((2, 3), [(8, 0.5), (9, 0.3)])
    draft.draft(3, 5)
    found = {guess.token: guess for guess in draft.guesses(draft.root())}
    assert set(found) == {8, 9}
    copied, _ = draft.matcher.rated(draft.matcher.cursor)[8]
    assert found[8].prob > copied > found[9].prob
    assert found[8].kind != found[9].kind


def test_bad_settings_are_named(tiny_llama):
    with pytest.raises(InputError, match=r"Goose\.k is 0; it must be"):
        Goose(k=0)
    with pytest.raises(VocabularyError, match="for 65 tokens"):
        Goose(memory=CopyMemory(AdjacencyMatrix(65))).begin(tiny_llama, PROMPT)
