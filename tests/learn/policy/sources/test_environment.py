"""Turns with an environment: whose tokens are whose, and what each side gets to read."""

import pytest
import torch

from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError
from tokenry.learn.policy.rollouts import RolloutSettings, reward_rollouts
from tokenry.learn.policy.sources.base import Prompts
from tokenry.learn.policy.sources.environment import TextEnvironment, Turns
from tokenry.model.score import score

ENDS = tuple(range(1, 17))  # a quarter of the tokens: turns are short


def prompts():
    batch = TokenBatch.from_ids([[20, 21], [30]], padding_side="left")
    return Prompts(batch.ids, batch.attention, ENDS)


def drawn(environment, model, turns=3, samples=8, length=24, seed=0):
    torch.manual_seed(seed)
    return Turns(environment, turns)(model, prompts(), RolloutSettings(samples, length))


def behind(batch, row):
    """What was said behind the prompt, and which of it was the policy's."""
    size = (2, 1)[int(batch.group[row])]
    real = batch.attention[row]
    return batch.ids[row][real].tolist()[size:], batch.target[row][real].tolist()[size:]


def test_what_comes_back_is_no_target_and_turns_end_with_an_end_token(tiny_llama):
    asked = []

    def answer(prompt, said):
        asked.append((list(prompt), list(said)))
        return [40, 41, 42]

    batch = drawn(answer, tiny_llama)
    assert batch.group.tolist() == [0, 1] * 8
    turns = 0
    for row in range(len(batch.ids)):
        said, own = behind(batch, row)
        others = [n for n, mine in enumerate(own) if not mine]
        assert [said[n] for n in others] == [40, 41, 42] * (len(others) // 3)
        for n in others[::3]:
            assert said[n - 1] in ENDS
            # what the environment read: the prompt, and all up to here
            assert ([[20, 21], [30]][int(batch.group[row])], said[:n]) in asked
        assert own[0]
        assert own[-1]
        turns = max(turns, 1 + len(others) // 3)
    assert turns == 3


def test_a_later_turn_is_drawn_knowing_what_came_back(tiny_llama):
    """Its log-probability under the whole row is not that without the answer."""
    batch = drawn(lambda prompt, said: [40, 41, 42], tiny_llama)
    whole = score(tiny_llama, batch).need("logprob")
    checked = 0
    for row in range(len(batch.ids)):
        said, own = behind(batch, row)
        later = [n for n, mine in enumerate(own) if mine and False in own[:n]]
        if not later:
            continue
        prompt = [[20, 21], [30]][int(batch.group[row])]
        with torch.no_grad():
            rows = tiny_llama(torch.tensor([[*prompt, *said]])).logits[0].log_softmax(-1)
        n = later[0]
        wanted = float(rows[len(prompt) + n - 1, said[n]])
        found = whole[row][batch.attention[row]][len(prompt) + n]
        assert float(found) == pytest.approx(wanted, abs=1e-3)
        checked += 1
    assert checked > 5


def test_none_ends_an_episode_and_so_does_the_limit(tiny_llama):
    once = drawn(lambda prompt, said: None, tiny_llama)
    assert once.target[:, 2:].sum() == once.attention[:, 2:].sum()
    # after an answer of 20 there are at most 3 left of 24: some go on, none goes over
    long = drawn(lambda prompt, said: [40] * 20, tiny_llama)
    lengths = [len(behind(long, row)[0]) for row in range(len(long.ids))]
    assert max(lengths) <= 24
    for row, length in enumerate(lengths):
        said, own = behind(long, row)
        first = next((n for n, token in enumerate(said) if token in ENDS), 24)
        assert (False in own) == (first + 1 + 20 < 24)
        assert own[-1] or length == 24
    assert any(False in behind(long, row)[1] for row in range(len(long.ids)))


def test_an_environment_of_texts_reads_and_writes_text(tiny_llama_text, tiny_tokenizer):
    seen = []

    def reply(prompt, said):
        seen.append((prompt, said))
        return " sat" if len(seen) < 4 else None

    ids = tiny_tokenizer(["the cat"], return_tensors="pt")["input_ids"]
    ends = tuple(range(0, len(tiny_tokenizer), 3))
    given = Prompts(ids, torch.ones_like(ids, dtype=torch.bool), ends)
    torch.manual_seed(0)
    source = Turns(TextEnvironment(tiny_tokenizer, reply), turns=8)
    batch = source(tiny_llama_text, given, RolloutSettings(2, 40))
    answer = tiny_tokenizer(" sat", add_special_tokens=False)["input_ids"]
    outside = batch.ids[batch.attention & ~batch.target & (batch.target.cumsum(-1) > 0)].tolist()
    assert outside == answer * (len(outside) // len(answer)) != []
    assert all(prompt == "the cat" for prompt, _ in seen)
    # what a reward reads is the whole exchange behind the prompt
    rewarded = []
    reward_rollouts(batch, tiny_tokenizer, [lambda p, c: rewarded.append((p, c)) or 0.0])
    for row, (prompt, exchange) in enumerate(rewarded):
        assert prompt == "the cat"
        said = batch.ids[row][batch.attention[row]][ids.shape[1] :].tolist()
        assert exchange == tiny_tokenizer.decode(said, skip_special_tokens=True)


def test_an_episode_without_turns_is_refused():
    with pytest.raises(InputError, match="turns"):
        Turns(lambda prompt, said: None, turns=0)
