"""Troubles 4 and 5: the ids that were sampled are trained (trl#5224), every end token ends.

Reward timeouts in threads and processes (trouble 9) are `tests/learn/rewards/test_calling.py`'s.
"""

import copy
from dataclasses import dataclass, field

import pytest
import torch

import tokenry.learn.policy.sources.environment as environment
from policy_trainer import PROMPTS, Given, logged, run
from tokenry.learn.policy.presets import GRPO
from tokenry.learn.policy.sources.environment import TextEnvironment, Turns

ENDS = [1, 7, 40, 41, 42, 43, 44, 45]


@dataclass(frozen=True)
class Spy(GRPO):
    """GRPO that keeps the batches that it learns from."""

    seen: list = field(default_factory=list, hash=False, compare=False)

    def __call__(self, batch, policy, reference=None, **others):
        self.seen.append(batch)
        return super().__call__(batch, policy, reference, **others)


def rows(batch, mask):
    return [ids[own].tolist() for ids, own in zip(batch.ids, mask, strict=True)]


def length(prompt, completion):
    return float(len(completion))


def test_what_was_sampled_is_trained_and_not_its_text_encoded_again(
    tiny_llama_text, tiny_tokenizer, tmp_path
):
    """Spellings that the tokenizer itself would not choose, and bytes that are no text at all."""
    letters = [tiny_tokenizer.convert_tokens_to_ids(letter) for letter in "the"]
    half = tiny_tokenizer("東", add_special_tokens=False)["input_ids"][:1]
    assert tiny_tokenizer("the", add_special_tokens=False)["input_ids"] != letters
    drawn = [[[*letters, 1], [*half, *letters[:2]]], [[*letters, *letters], [*half, *half, 1]]]
    goal, texts = Spy(), []

    def reward(prompt, completion):
        texts.append(completion)
        return float(len(completion))

    run(
        goal,
        (tiny_llama_text, tiny_tokenizer),
        tmp_path,
        PROMPTS[:2],
        rewards=[reward],
        source=Given(tiny_tokenizer, drawn),
        samples=2,
        updates=2,
    )
    assert len(goal.seen) == 2
    for batch in goal.seen:
        assert sorted(rows(batch, batch.target)) == sorted(row for own in drawn for row in own)
    assert "the" in texts


def test_a_second_turn_stands_behind_the_ids_of_the_first(
    tiny_llama_text, tiny_tokenizer, tmp_path, monkeypatch
):
    """Turns are kept as sampled; only what the environment says in between is encoded."""
    turns, real = [], environment.sample

    def watched(model, ids, attention, **options):
        found = real(model, ids, attention, **options)
        for row, mask, turn in zip(ids, attention, found, strict=True):
            turns.append((row[mask].tolist(), turn))
        return found

    monkeypatch.setattr(environment, "sample", watched)
    model = copy.deepcopy(tiny_llama_text)
    model.generation_config.eos_token_id = list(range(1, len(tiny_tokenizer), 2))
    goal = Spy()
    run(
        goal,
        (model, tiny_tokenizer),
        tmp_path,
        PROMPTS[:2],
        rewards=[length],
        source=Turns(TextEnvironment(tiny_tokenizer, lambda prompt, said: " sat"), turns=3),
        max_new_tokens=24,
    )
    batch = goal.seen[0]
    own, every = rows(batch, batch.target), rows(batch, batch.attention)
    later = 0
    for chosen, whole in zip(own, every, strict=True):
        pieces = {
            (len(before), tuple(turn))
            for before, turn in turns
            if whole[: len(before) + len(turn)] == before + turn
        }
        assert [token for _, turn in sorted(pieces) for token in turn] == chosen
        later += len(pieces) > 1
    assert later >= 4
    # and those ids are not what the tokenizer makes of their text
    again = [tiny_tokenizer(tiny_tokenizer.decode(ids))["input_ids"] for ids in every]
    assert again != every


@pytest.mark.parametrize("pad", ["</s>", "<s>"])
def test_every_end_token_ends_and_counts_and_padding_does_not(
    pad, tiny_llama_text, tiny_tokenizer, tmp_path
):
    """Also where the padding token is an end token (trl#7039, #4970)."""
    model, tokenizer = copy.deepcopy(tiny_llama_text), copy.deepcopy(tiny_tokenizer)
    model.generation_config.eos_token_id = ENDS[1:]  # the tokenizer's own, 1, ends too
    with torch.no_grad():
        model.model.embed_tokens.weight[ENDS] *= 3  # so that texts of this model end now and then
    tokenizer.pad_token = pad
    goal = Spy()
    found, _ = run(
        goal,
        (model, tokenizer),
        tmp_path,
        PROMPTS[:4],
        rewards=[length],
        per_device_train_batch_size=4,
        samples=24,
    )
    ended = set()
    batch = goal.seen[0]
    for own, mask, target in zip(batch.ids, batch.attention, batch.target, strict=True):
        chosen = own[target].tolist()
        assert not set(chosen[:-1]) & set(ENDS)
        assert chosen[-1] in ENDS or len(chosen) == 8
        ended |= {chosen[-1]} & set(ENDS)
        last = int(mask.nonzero()[-1])
        assert bool(target[last])  # the end token is a target
        assert not (target | mask)[last + 1 :].any()
        assert set(own[last + 1 :].tolist()) <= {tokenizer.pad_token_id}
    assert len(ended) > 3
    ending = sum(row[-1] in ENDS for row in rows(batch, batch.target))
    assert logged(found, "completions/cut") == [pytest.approx(1 - ending / len(batch.ids))]
