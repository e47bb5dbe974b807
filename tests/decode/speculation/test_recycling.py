"""Token Recycling: the table, the unrolled tree, and the checks that the paper's method implies."""

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenry.core.errors import InputError, VocabularyError
from tokenry.decode.speculation.recycling import (
    AdjacencyMatrix,
    RecyclingDraft,
    SuccessorMemory,
    TokenRecycling,
    likely,
    top,
)
from tokenry.decode.speculation.speculate import generate_with_drafter
from tokenry.decode.speculation.tree import TokenTree, TreeTemplate
from tokenry.decode.speculation.tree_expansion import MOST_NODES
from tokenry.decode.speculation.verify import Accepted, verify_greedy
from tokenry.model.decoding import DecodingState

PROMPT = [5, 17, 9, 33, 21, 9, 40, 12, 3, 28, 51]
ALL = {"template": TreeTemplate.default(), "learn_prompt": "nothing"}


def random_logits(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def write(table, tokens, logits, path=(0,)):
    probs, ids = likely(logits, table.ids.shape[1])
    table.write(tokens, ids, probs, Accepted(list(path), []))


def random_table(seed=0):
    table = AdjacencyMatrix(64)
    write(table, range(64), random_logits(64, 64, seed=seed))
    return table


def markov(model):
    """The model without attention: its predictions depend on the last token only."""
    twin = copy.deepcopy(model)
    for layer in twin.model.layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
    return twin


def test_a_row_holds_the_most_probable_successors():
    table, logits = AdjacencyMatrix(50, k=3), random_logits(2, 50)
    write(table, [7, 4], logits)
    values, ids = logits.softmax(-1).topk(3)
    assert torch.equal(table.successors(torch.tensor([7, 4])), ids)
    torch.testing.assert_close(table.probs[[7, 4]], values)
    assert table.row(8) == []


def test_of_repeated_tokens_the_last_row_stays():
    table, logits = AdjacencyMatrix(50, k=3), random_logits(3, 50)
    write(table, [7, 4, 7], logits, path=[1])
    assert torch.equal(table.successors(torch.tensor([7])), logits[2:].topk(3).indices)


@pytest.mark.parametrize("size", [64, 500, 1024, 1300, 5000])
def test_blockwise_top_is_topk(size):
    logits = random_logits(6, size, seed=size)
    logits[0, -3:] = 9.0 + torch.arange(3)  # in the columns beyond the last whole block
    logits[1] = logits[1].sort(descending=True).values  # all in one block
    values, ids = top(logits, 8, width=16)
    expected = logits.topk(8)
    assert torch.equal(values, expected.values)
    assert torch.equal(ids, expected.indices)


def test_observed_successors_come_to_the_front():
    table = AdjacencyMatrix(10, k=3)
    known = torch.tensor([[0.4, 0.3, 0.1, 0.2, 1e-9, 1e-9, 1e-9, 1e-9, 1e-9, 1e-9]])
    write(table, [2], known.log())
    table.observe([2, 3, 2, 5, 9])
    assert [token for token, _ in table.row(2)] == [5, 3, 0]
    assert table.row(5) == [(9, 0.5)]
    assert table.row(9) == []


@given(st.lists(st.integers(0, 9), max_size=40))
def test_observing_lists_each_tokens_latest_distinct_successors(text):
    table = AdjacencyMatrix(10, k=3)
    table.observe(text)
    for token in range(10):
        after = [text[at + 1] for at in range(len(text) - 1) if text[at] == token]
        latest = list(dict.fromkeys(reversed(after)))[:3]
        assert [found for found, _ in table.row(token)] == latest


def test_the_table_survives_a_file(tmp_path):
    table, path = random_table(), tmp_path / "table.safetensors"
    table.save(path)
    loaded = AdjacencyMatrix.load(path)
    assert torch.equal(loaded.ids, table.ids)
    assert torch.equal(loaded.probs, table.probs)
    assert [file.name for file in tmp_path.iterdir()] == ["table.safetensors"]
    path.write_bytes(b"nothing like it")
    with pytest.raises(InputError, match=r"table\.safetensors holds no table"):
        AdjacencyMatrix.load(path)


def test_the_tree_unrolls_the_table_along_the_template(tiny_llama):
    drafter = TokenRecycling(**ALL, memory=SuccessorMemory(random_table()))
    draft = drafter.begin(tiny_llama, PROMPT)
    tree = draft.draft(11, budget=99)
    template, table = drafter.template, drafter.table
    assert tree.parents == template.parents
    assert tree.tokens[0] == 11
    for node in range(1, 81):
        parent = tree.tokens[template.parents[node]]
        assert tree.tokens[node] == table.ids[parent, template.ranks[node]]
    assert max(draft.draft(11, budget=2).depths) == 2
    assert len(draft.draft(11, budget=0)) == 1


def test_fewer_nodes_are_the_ones_that_were_most_probable(tiny_llama):
    drafter = TokenRecycling(nodes=1, learn_prompt="nothing")
    draft = drafter.begin(tiny_llama, PROMPT)
    logits = torch.full((2, 64), -5.0)
    logits[0, 8], logits[0, 9], logits[1, 3] = 4.0, 1.0, 6.0
    write(drafter.table, [11, 8], logits)
    assert draft.draft(11, 9).tokens == (11, 8)
    # the child of the best guess beats the second-best guess
    two = replace(drafter, nodes=2).begin(tiny_llama, PROMPT).draft(11, 9)
    assert (two.tokens, two.parents) == ((11, 8, 3), (-1, 0, 1))


def test_the_tree_grows_with_what_the_machine_gives_for_free(tiny_llama):
    drafter = TokenRecycling(memory=SuccessorMemory(random_table()), learn_prompt="nothing")
    sizes = []
    for each in (1.0, 0.05, 0.0):  # cost of one more token, in passes
        draft = RecyclingDraft(drafter, {1: 1.0, 2: 1.0 + each})
        sizes.append(len(draft.draft(11, budget=99)))
    assert sizes[0] == 1
    assert 1 < sizes[1] < MOST_NODES
    assert sizes[2] == MOST_NODES + 1


def test_guesses_that_keep_failing_are_no_longer_made():
    drafter = TokenRecycling(memory=SuccessorMemory(random_table()), learn_prompt="nothing")
    draft = RecyclingDraft(drafter, {1: 1.0, 2: 1.05})
    tree = draft.draft(11, budget=1)
    assert len(tree) > 1
    guess = tree.notes[1]
    before = drafter.memory.calibration.rate(guess)
    for _ in range(100):
        tree = draft.draft(11, budget=1)
        kept = drafter.table.ids.clone(), drafter.table.probs.clone()
        draft.update(tree, random_logits(len(tree), 64), Accepted([0], [-9]))
        drafter.table.ids, drafter.table.probs = kept
    assert len(tree) == 1
    assert drafter.memory.calibration.rate(guess) <= 0.05 < before


def test_a_perfect_table_gives_seven_tokens_per_pass(tiny_model):
    """The chain 000000 is six guesses deep."""
    model = markov(tiny_model)
    table = AdjacencyMatrix(64)
    with torch.no_grad():
        write(table, range(64), model(torch.arange(64)[:, None]).logits[:, 0])
    drafter = TokenRecycling(**ALL, memory=SuccessorMemory(table))
    found = generate_with_drafter(model, PROMPT, drafter, 1 + 5 * 7, eos_token_id=[])
    assert found.accept_lengths == [7] * 5
    assert found.nodes[:4] == [81] * 4


class Frozen(TokenRecycling):
    def begin(self, model, prompt):
        draft = super().begin(model, prompt)
        draft.update = lambda *_: None
        return draft


def test_an_empty_table_costs_one_pass_per_token(tiny_model):
    found = generate_with_drafter(tiny_model, PROMPT, Frozen(**ALL), 20, eos_token_id=[])
    assert found.forward_calls == len(found.new_ids) == 20
    assert found.tokens_per_pass == 1


def test_the_cache_is_that_of_sequential_decoding(tiny_model):
    drafter = TokenRecycling(**ALL, memory=SuccessorMemory(random_table()))
    draft = drafter.begin(tiny_model, PROMPT)
    state = DecodingState.start(tiny_model, torch.tensor([PROMPT]))
    plain = state.copy()
    for step in range(3):
        tree = draft.draft(11 + step, budget=9)
        logits = state.tree(torch.tensor(tree.tokens), torch.tensor(tree.parents))
        path = next(path for path in drafter.template.leaf_paths[step + 20 :] if len(path) > 3)
        state.keep(torch.tensor(path))
        draft.update(tree, logits, verify_greedy(tree, logits))
        plain.append(torch.tensor([[tree.tokens[node] for node in path]]))
    for ours, theirs in zip(state.cache.layers, plain.cache.layers, strict=True):
        torch.testing.assert_close(ours.keys, theirs.keys, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours.values, theirs.values, atol=1e-5, rtol=1e-5)


def test_rejected_guesses_teach_too():
    drafter = TokenRecycling(**ALL, memory=SuccessorMemory(AdjacencyMatrix(64)))
    tree = TokenTree((5, 6, 7), (-1, 0, 0))
    logits = random_logits(3, 64)
    logits[0, 6] = 99.0
    RecyclingDraft(drafter, {}).update(tree, logits, verify_greedy(tree, logits))
    assert torch.equal(drafter.table.successors(torch.tensor([7]))[0], logits[2].topk(8).indices)


def test_an_accepted_node_outranks_a_later_one_of_the_same_token():
    drafter = TokenRecycling(**ALL, memory=SuccessorMemory(AdjacencyMatrix(64)))
    tree = TokenTree((5, 6, 7, 6), (-1, 0, 0, 2))
    logits = random_logits(4, 64)
    logits[0, 6] = 99.0
    RecyclingDraft(drafter, {}).update(tree, logits, verify_greedy(tree, logits))
    assert torch.equal(drafter.table.successors(torch.tensor([6]))[0], logits[1].topk(8).indices)


def test_the_table_lives_on_across_prompts(tiny_llama):
    drafter = TokenRecycling(nodes=80)
    cold = generate_with_drafter(tiny_llama, PROMPT, drafter, 40, eos_token_id=[])
    warm = generate_with_drafter(tiny_llama, PROMPT, drafter, 40, eos_token_id=[])
    assert warm.ids == cold.ids
    assert warm.forward_calls < cold.forward_calls


def test_learning_from_the_prompts_logits_fills_its_tokens_rows(tiny_llama):
    drafter = TokenRecycling(nodes=0, learn_prompt="logits")
    found = generate_with_drafter(tiny_llama, PROMPT, drafter, 1, eos_token_id=[])
    with torch.no_grad():
        logits = tiny_llama(torch.tensor([PROMPT])).logits[0]
    for token in PROMPT[1:]:
        at = max(i for i, other in enumerate(PROMPT) if other == token)
        assert drafter.table.ids[token].tolist() == logits[at].topk(8).indices.tolist()
    plain = generate_with_drafter(tiny_llama, PROMPT, TokenRecycling(**ALL), 1, eos_token_id=[])
    assert found.ids == plain.ids


def test_a_table_of_another_vocabulary_is_refused(tiny_llama):
    drafter = TokenRecycling(nodes=80, memory=SuccessorMemory(AdjacencyMatrix(65)))
    with pytest.raises(VocabularyError, match="for 65 tokens, the model has 64"):
        drafter.begin(tiny_llama, PROMPT)


def test_impossible_settings_are_named():
    with pytest.raises(InputError, match=r"TokenRecycling\.k is 0"):
        TokenRecycling(k=0)
    with pytest.raises(InputError, match=r"k is 9; it must be a whole number in \[1, 4\]"):
        AdjacencyMatrix(4, 9)
