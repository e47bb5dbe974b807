"""Shapes of draft trees against worked values and brute force."""

import itertools

import pytest
import torch

from tokenry.decode.speculation.baselines import NoDraft
from tokenry.decode.speculation.dyspec import DySpec
from tokenry.decode.speculation.goose import Goose, GooseDraft
from tokenry.decode.speculation.tree import TokenTree
from tokenry.decode.speculation.verify import Accepted
from tokenry.lab.draft_trees import (
    SHAPES,
    FixedTree,
    NGramDraft,
    ShapedGoose,
    Tally,
    balanced_tree,
    best_tree,
    calls_per_tree,
    chains,
    complete_tree,
    expected_by_shape,
    expected_tokens,
    fixed_trees,
    greedy_rates,
    sampled_rates,
)
from tokenry.lab.drafting import alike, redrafted, replayed, written
from tokenry.text.ngrams import NGramModel

PROMPT = [5, 9, 3, 8, 2, 7, 4, 6, 5, 9, 3]
CORPUS = [[0, 1, 0, 1, 0, 2, 0, 1, 2], [3, 1, 0, 2]]


def paths_of(tree):
    paths = [()]
    for node in range(1, len(tree)):
        paths.append((*paths[tree.parents[node]], tree.tokens[node]))
    return paths


def test_an_n_gram_draft_mixes_the_frequencies_of_every_order():
    draft = NGramDraft(NGramModel.fit(CORPUS, 5, weights=(0.1, 0.2, 0.7)))
    # once, token 1 follows 1 0 and twice 2 does; 1 follows 0 three times and 2 two times of five
    single = torch.tensor([5.0, 4, 3, 1, 0]) / 13
    expected = 0.1 * single
    expected[1] += 0.2 * 3 / 5 + 0.7 * 1 / 3
    expected[2] += 0.2 * 2 / 5 + 0.7 * 2 / 3
    torch.testing.assert_close(draft.logits([3, 1, 0]).exp(), expected)
    torch.testing.assert_close(draft.logits([4]).exp(), 0.1 * single)
    batch = draft(torch.tensor([[3, 1, 0], [0, 4, 4]]))
    torch.testing.assert_close(batch[0].exp(), expected)
    torch.testing.assert_close(batch[1].exp(), 0.1 * single)


def test_fixed_shapes_by_their_paths():
    assert complete_tree(2, 4) == [(0,), (1,), (0, 0), (0, 1)]
    assert chains(1, 3) == [(0,), (0, 0), (0, 0, 0)]
    assert chains(2, 5) == [(0,), (1,), (0, 0), (1, 0), (0, 0, 0)]


def test_the_best_tree_expects_more_than_any_other_of_its_size():
    rates, nodes = [0.2, 0.6], 3  # the higher rate goes to the first guess
    falling = sorted(rates, reverse=True)

    def worth(paths):
        values = []
        for path in paths:
            product = 1.0
            for rank in path:
                product *= falling[rank]
            values.append(product)
        return sum(values)

    every = [path for depth in (1, 2, 3) for path in itertools.product((0, 1), repeat=depth)]
    rivals = [
        paths
        for paths in itertools.combinations(every, nodes)
        if all(len(path) == 1 or path[:-1] in paths for path in paths)
    ]
    assert worth(best_tree(rates, nodes)) == pytest.approx(max(map(worth, rivals)))


def test_a_balanced_tree_gives_every_node_as_many_children():
    tree = balanced_tree([9, 0], [1, 2], 10, lambda before, token: [(1, 0.5), (7, 0.2), (8, 0.1)])
    assert paths_of(tree) == [
        (), (1,), (7,), (8,), (1, 2), (1, 1), (1, 7), (7, 1), (7, 7), (7, 8),
    ]  # fmt: skip


def test_successors_are_asked_for_after_the_pair():
    asked = []
    balanced_tree([4, 5], [], 3, lambda *pair: asked.append(pair) or [(6, 1.0)])
    assert asked == [(4, 5), (5, 6)]


def test_expected_tokens_of_shapes_by_hand():
    found = expected_by_shape(4, spine=0.5, branch=0.1)
    assert found["chain alone"] == pytest.approx(0.5 + 0.25 + 0.125)
    assert found["balanced tree"] == pytest.approx(0.5 + 0.1 + 0.1)
    assert found["goose"] >= 0.5
    paper = expected_by_shape(60, spine=0.6, branch=0.1)
    assert paper["chain alone"] == pytest.approx(1.5)
    assert paper["goose"] == pytest.approx(2.36046, abs=1e-5)
    assert paper["balanced tree"] == pytest.approx(1.883)
    assert paper["successors alone"] == pytest.approx(0.5954)


def test_a_tally_counts_guesses_whose_parent_was_right():
    notes = ("root", "spine", "branch", "spine", "branch")
    tree = TokenTree((0, 1, 2, 3, 4), (-1, 0, 0, 1, 2), notes)
    tally = Tally()
    tally(tree, Accepted([0, 1], [1, 9]))  # 3 was wrong; 4 hangs on a wrong guess
    assert tally.share("spine") == 0.5
    assert tally.share("branch") == 0.0
    assert (tally + tally).tried["branch"] == 2
    assert Tally().share("spine") == 0.0


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_writes_the_text_of_plain_decoding_within_its_nodes(tiny_model, name):
    texts = written(tiny_model, [PROMPT], 24, eos_token_id=[])
    drafter = ShapedGoose(nodes=8, shape=SHAPES[name])
    found = redrafted(tiny_model, texts, drafter, eos_token_id=[])
    assert alike(found, texts)
    most = 8 + (40 if name in ("goose", "successors alone") else 0)  # confidence adds nodes
    assert max(found[0].nodes) <= most
    if SHAPES[name] is GooseDraft.shape:
        own = redrafted(tiny_model, texts, Goose(nodes=8), eos_token_id=[])
        assert own[0].accept_lengths == found[0].accept_lengths


@pytest.fixture
def drafted(tiny_model):
    texts = written(tiny_model, [PROMPT, PROMPT[::-1]], 24, eos_token_id=[])
    rows = [[*prompt, *answer] for prompt, answer in texts]
    return texts, NGramDraft(NGramModel.fit(rows, 64, weights=(0.05, 0.25, 0.7)))


def test_a_fixed_chain_guesses_the_likeliest_tokens_in_a_row(tiny_model, drafted):
    texts, draft = drafted
    dynamic = DySpec(draft, nodes=3, temperature=1.0)
    tree = FixedTree(dynamic, chains(1, 3)).begin(tiny_model, PROMPT[:-1]).draft(PROMPT[-1], 10)
    text = list(PROMPT)
    for _ in range(3):
        text.append(int(draft.logits(text).argmax()))
    assert list(tree.tokens) == text[len(PROMPT) - 1 :]
    assert tree.parents == (-1, 0, 1, 2)
    shallow = FixedTree(dynamic, chains(1, 3)).begin(tiny_model, PROMPT[:-1])
    assert len(shallow.draft(PROMPT[-1], 2)) == 3
    # what it does text by text is what drafting does
    for name, drafter in fixed_trees(dynamic, [0.5, 0.2]).items():
        real = redrafted(tiny_model, texts, drafter, eos_token_id=[])
        fresh = fixed_trees(dynamic, [0.5, 0.2])[name]
        assert replayed(tiny_model, fresh, texts).passes == tuple(t.forward_calls for t in real)


def test_rates_of_greedy_guesses_are_how_often_they_come_next(drafted):
    texts, draft = drafted
    rates = greedy_rates(draft, texts)
    hits = [
        int(draft.logits([*prompt, *answer[:at]]).argmax()) == answer[at]
        for prompt, answer in texts
        for at in range(len(answer))
    ]
    assert rates[0] == pytest.approx(sum(hits) / len(hits))
    assert sum(rates) <= 1 + 1e-6


def test_rates_of_draws_are_those_of_verification(tiny_model, drafted):
    """A draft that is the target itself: its first draw is always accepted."""
    texts, _ = drafted

    class Target:
        def logits(self, text):
            with torch.no_grad():
                return tiny_model(torch.tensor([text])).logits[0, -1].float()

    rates = sampled_rates(tiny_model, Target(), texts, 0.6, seed=0)
    assert rates[0] == pytest.approx(1.0, abs=1e-3)
    assert max(rates[1:]) == pytest.approx(0.0, abs=1e-3)


def test_expected_tokens_of_a_tree_that_knows_the_distribution(tiny_model, drafted):
    """Without guesses a step gives one token; the likeliest token adds its probability."""
    texts, _ = drafted
    temperature = 0.6

    def target(rows):
        with torch.no_grad():
            return tiny_model(rows).logits[:, -1].float()

    likeliest = FixedTree(DySpec(target, nodes=1, temperature=temperature), [(0,)])
    found = expected_tokens(tiny_model, [NoDraft(), likeliest], texts[0], 8, temperature)
    prompt, answer = texts[0]
    row = [*prompt, *answer]
    assert found.shape == (3, 2)
    for place, at in enumerate(range(len(prompt), len(row), 8)):
        best = (target(torch.tensor([row[:at]]))[0] / temperature).softmax(-1).max()
        torch.testing.assert_close(found[place], torch.tensor([1.0, 1.0 + float(best)]))


def test_a_tree_by_levels_asks_once_a_level_and_a_heap_once_a_node(tiny_model):
    """Six nodes of a draft that knows two tokens: two levels, three nodes with children, and one
    more that the heap asks about since its children may be worth as much. The text has neither
    token, so nine steps may look 8, 7, ... 0 tokens ahead."""

    def two_tokens(texts):
        return torch.tensor([[0.5, 0.5, *[0.0] * 62]]).log().expand(len(texts), -1)

    text = ([3, 4], [5] * 10)
    calls = [
        calls_per_tree(tiny_model, two_tokens, text, nodes=6, expansion=expansion)
        for expansion in ("levels", "heap")
    ]
    assert calls == pytest.approx([(7 * 2 + 1) / 9, (6 * 4 + 3 + 1) / 9])
