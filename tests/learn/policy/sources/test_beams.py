"""Beams under a trie: the likeliest of the possible answers, by brute force."""

import pytest
import torch

from tokenry.core.batch import TokenBatch
from tokenry.core.errors import ConstraintError, InputError
from tokenry.learn.policy.rollouts import RolloutSettings
from tokenry.learn.policy.sources.base import Prompts
from tokenry.learn.policy.sources.beams import Beams, Trie

END = 1
ITEMS = [[a, b, c] for a in (5, 6, 7) for b in (8, 9) for c in (5, 9)] + [[5], [7, 8]]
PROMPTS = [[20, 21, 22], [30]]


def prompts(ends=(END,)):
    batch = TokenBatch.from_ids(PROMPTS, padding_side="left")
    return Prompts(batch.ids, batch.attention, ends)


def logprob(model, prompt, text):
    ids = torch.tensor([[*prompt, *text]])
    rows = model(ids).logits[0].log_softmax(-1)[len(prompt) - 1 : -1]
    return float(rows.gather(-1, torch.tensor(text)[:, None]).sum())


def test_the_rows_are_the_likeliest_texts_best_first_and_know_how_likely(tiny_llama):
    batch = Beams(ITEMS, beams=len(ITEMS))(tiny_llama, prompts(), RolloutSettings(3, 4))
    assert batch.group.tolist() == [0, 0, 0, 1, 1, 1]
    for number, prompt in enumerate(PROMPTS):
        with torch.no_grad():
            truth = {tuple(i): logprob(tiny_llama, prompt, [*i, END]) for i in ITEMS}
        best = sorted(truth, key=lambda text: -truth[text])[:3]
        rows = [3 * number + n for n in range(3)]
        assert [tuple(batch.ids[row][batch.target[row]].tolist()) for row in rows] == [
            (*text, END) for text in best
        ]
        found = batch.column("beam_logprob")[rows].tolist()
        assert found == pytest.approx([truth[text] for text in best], abs=1e-3)


def test_fewer_texts_than_asked_for_are_all_there_is(tiny_llama):
    batch = Beams([[5], [6]])(tiny_llama, prompts(), RolloutSettings(8, 4))
    assert torch.bincount(batch.group).tolist() == [2, 2]


def test_every_prompt_may_have_its_own_trie(tiny_llama):
    own = {20: [[5], [6]], 30: [[9, 9]]}
    batch = Beams(lambda prompt: own[prompt[0]])(tiny_llama, prompts(), RolloutSettings(2, 4))
    assert batch.group.tolist() == [0, 0, 1]
    assert batch.ids[2][batch.target[2]].tolist() == [9, 9, END]


def test_what_cannot_be_answered_is_said(tiny_llama):
    settings = RolloutSettings(2, 3)
    with pytest.raises(InputError, match="end token"):
        Beams(ITEMS)(tiny_llama, prompts(ends=()), settings)
    with pytest.raises(InputError, match="max_new_tokens=3 for prompt 0"):
        Beams([[5, 6, 7]])(tiny_llama, prompts(), settings)
    with pytest.raises(ConstraintError, match="without texts"):
        Beams([])(tiny_llama, prompts(), settings)
    with pytest.raises(InputError, match="beams"):
        Beams(ITEMS, beams=0)


def test_the_trie_is_the_language_of_its_texts():
    trie = Trie([[5, 6], [5], [7]], 10, [1])
    state = trie.initial()
    assert state.mask().nonzero()[:, 0].tolist() == [5, 7]
    assert not state.complete
    state = state.advance(5)
    assert state.mask().nonzero()[:, 0].tolist() == [1, 6]
    assert state.complete
    assert [state.allows(token) for token in range(10)] == state.mask().tolist()
    over = state.advance(1)
    assert over.finished
    assert not over.mask().any()
    with pytest.raises(ConstraintError, match="goes on with the token 7"):
        state.advance(7)
