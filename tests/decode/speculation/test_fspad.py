"""FSPAD: the tree that the head drafts, its memory of the text, and the unchanged text."""

import copy

import pytest
import torch

from tokenry.core.errors import InputError
from tokenry.decode.speculation.fspad import FSPAD
from tokenry.decode.speculation.speculate import generate_with_drafter
from tokenry.decode.speculation.tree import TokenTree
from tokenry.decode.speculation.verify import Accepted
from tokenry.model.decoding import DecodingState
from tokenry.model.heads.fspad import FeatureHead, features_of

PROMPT = [5, 9, 23, 11, 42, 7]


@pytest.fixture(scope="module")
def exact(tiny_model):
    return copy.deepcopy(tiny_model).double()


def lively(model, **options):
    """A head as after training, in the model's precision."""
    head = FeatureHead.of(model, **options).to(model.dtype)
    torch.manual_seed(3)
    for weight in (head.sampler.down.weight, head.branch.weight):
        torch.nn.init.normal_(weight, std=0.3)
    return head


@torch.no_grad()
def guess(model, head, text, drafted):
    """Probabilities after `text` + `drafted`, by running the head over all pairs in one go: true
    features up to the text's last token but one, its own predictions after that."""
    ids = torch.tensor([text])
    features = features_of(model, ids, torch.ones_like(ids))[:, :-1]
    tokens = [*text, *drafted]
    for _ in range(len(drafted) + 1):
        told = model.get_input_embeddings()(torch.tensor([tokens[1 : features.shape[1] + 1]]))
        predicted, answer, _ = head(features, told)
        features = torch.cat([features, predicted[:, -1:]], dim=1)
    weight, _ = head.output_rows(model)
    return (answer[0, -1] @ weight.T).float().softmax(-1)


@pytest.mark.parametrize("vocabulary", [None, torch.arange(0, 64, 3)])
def test_the_tree_has_the_likeliest_paths_of_the_head(exact, vocabulary):
    """breadth 64 expands everything, so brute force over paths of two tokens is the truth."""
    head = lively(exact, vocabulary=vocabulary)
    ids = list(range(64)) if vocabulary is None else vocabulary.tolist()
    draft = FSPAD(head, nodes=12, depth=2, breadth=64).begin(exact, PROMPT)
    tree = draft.draft(8, budget=5)
    text = [*PROMPT, 8]
    first = guess(exact, head, text, [])
    worth = {}
    for place, token in enumerate(ids):
        worth[(token,)] = float(first[place])
        second = guess(exact, head, text, [token])
        for after, q in zip(ids, second.tolist(), strict=True):
            worth[token, after] = float(first[place]) * q
    best = set(sorted(worth, key=lambda path: -worth[path])[:12])
    found = set()
    for node in range(1, len(tree)):
        parent = tree.parents[node]
        found.add((tree.tokens[node],) if parent == 0 else (tree.tokens[parent], tree.tokens[node]))
    assert found == best
    assert tree.tokens[0] == 8


def test_a_chain_follows_the_head_and_stays_in_its_budget(exact):
    head = lively(exact)
    draft = FSPAD(head, nodes=4, depth=4, breadth=1).begin(exact, PROMPT)
    chain = draft.draft(8, budget=4)
    expected = []
    for _ in range(4):
        expected.append(int(guess(exact, head, [*PROMPT, 8], expected).argmax()))
    assert chain == TokenTree.chain([8, *expected])
    for budget in (0, 2):
        fresh = FSPAD(head, nodes=4, depth=4, breadth=1).begin(exact, PROMPT)
        assert fresh.draft(8, budget=budget) == TokenTree.chain([8, *expected[:budget]])


def test_the_true_features_of_accepted_tokens_replace_the_predicted_ones(exact):
    """After an accepted branch the head says what it says on the same text as a prompt."""
    head = lively(exact)
    drafter = FSPAD(head, nodes=9, depth=3, breadth=3)
    draft = drafter.begin(exact, PROMPT)
    state = DecodingState.start(exact, torch.tensor([PROMPT]))
    tree = draft.draft(8, budget=5)
    node = next(n for n in range(len(tree) - 1, 0, -1) if tree.depths[n] == 2)
    path = [0, tree.parents[node], node]
    logits = draft.read(state, tree)
    tokens = [tree.tokens[path[1]], tree.tokens[path[2]], 55]
    draft.update(tree, logits, Accepted(path, tokens))
    again = drafter.begin(exact, [*PROMPT, 8, *tokens[:2]])
    assert draft.draft(55, budget=5) == again.draft(55, budget=5)
    for mine, theirs in zip(draft.memory, again.memory, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("options", [{}, {"breadth": 1, "depth": 3}, {"nodes": None}])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_trained_head_changes_no_text(tiny_model, options, dtype):
    model = copy.deepcopy(tiny_model).to(dtype)
    drafter = FSPAD(lively(model), **options)
    found = generate_with_drafter(model, PROMPT, drafter, 16, eos_token_id=[])
    if dtype == torch.float64:
        ids = torch.tensor([PROMPT])
        expected = model.generate(
            ids, attention_mask=ids > 0, max_new_tokens=16, do_sample=False, eos_token_id=None
        )
        assert found.ids == expected[0].tolist()
    assert len(found.new_ids) == 16


def test_drawn_chains_carry_what_they_were_drawn_from(exact):
    head = lively(exact, vocabulary=torch.arange(1, 64, 2))
    drafter = FSPAD(head, depth=3, temperature=0.8)
    tree = drafter.begin(exact, PROMPT).draft(8, budget=9)
    assert tree.parents == (-1, 0, 1, 2)
    assert tree.proposals.shape == (4, 64)
    first = guess(exact, head, [*PROMPT, 8], [])  # at temperature 1
    expected = (first.log() / 0.8).softmax(-1)
    torch.testing.assert_close(tree.proposals[1, 1::2], expected, atol=1e-5, rtol=1e-4)
    assert float(tree.proposals[:, ::2].abs().max()) == 0.0
    again = FSPAD(head, depth=3, temperature=0.8)
    assert again.begin(exact, PROMPT).draft(8, budget=9) == tree  # the same seed
    drawn = {drafter.begin(exact, PROMPT).draft(8, budget=1).tokens for _ in range(40)}
    assert len(drawn) > 3  # a further text is not drafted with the same draws


def test_impossible_settings_are_refused():
    for options in ({"depth": 0}, {"breadth": 0}, {"nodes": 0}, {"temperature": -1.0}):
        (name,) = options
        with pytest.raises(InputError, match=rf"FSPAD\.{name} is"):
            FSPAD(**options)
