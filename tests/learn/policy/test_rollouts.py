"""Rollouts: sampled from the policy, ended where they end, rewarded once."""

import math

import pytest
import torch

from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError
from tokenry.learn.policy.rollouts import RolloutSettings, reward_rollouts, sample_rollouts
from tokenry.model.score import score


def prompts():
    batch = TokenBatch.from_ids([[5, 6, 7], [8, 9]], padding_side="left")
    return batch.ids, batch.attention


def test_rows_are_prompt_and_completion_up_to_and_with_the_end_token(tiny_llama):
    torch.manual_seed(0)
    ids, attention = prompts()
    settings = RolloutSettings(samples=40, max_new_tokens=8)
    batch = sample_rollouts(tiny_llama, ids, attention, settings, eos=[3, 4, 10, 11, 12])
    assert batch.shape[0] == 80
    assert batch.group.tolist() == [0, 1] * 40
    ends = torch.tensor([3, 4, 10, 11, 12])
    ended = 0
    for row in range(80):
        shown = batch.ids[row][batch.attention[row]].tolist()
        drawn = batch.ids[row][batch.target[row]]
        assert shown[: 3 if row % 2 == 0 else 2] == [[5, 6, 7], [8, 9]][row % 2]
        assert not torch.isin(drawn[:-1], ends).any()
        ended += len(drawn) < 8
        if len(drawn) < 8:
            assert torch.isin(drawn[-1], ends)
    assert ended > 20  # five of 64 tokens end a text: the rule above was put to use


def test_samples_follow_the_policy(tiny_llama):
    """First tokens of 4,000 samples against the model's probabilities (false alarms < 1e-6)."""
    torch.manual_seed(0)
    ids, attention = prompts()
    settings = RolloutSettings(samples=2000, max_new_tokens=1)
    batch = sample_rollouts(tiny_llama, ids, attention, settings, eos=[])
    for prompt, length in ((0, 3), (1, 2)):
        logits = tiny_llama(ids[prompt : prompt + 1, 3 - length :]).logits[0, -1]
        p = logits.softmax(-1)
        drawn = batch.ids[prompt::2, -1]
        share = torch.bincount(drawn, minlength=len(p)) / len(drawn)
        bound = 6 * (p * (1 - p) / len(drawn)).sqrt() + 2e-3
        assert ((share - p).abs() < bound).all()


def test_sampling_leaves_the_training_mode_as_it_was_and_scores_agree(tiny_llama):
    tiny_llama.train()
    ids, attention = prompts()
    batch = sample_rollouts(tiny_llama, ids, attention, RolloutSettings(2, 4))
    assert tiny_llama.training
    tiny_llama.eval()
    assert score(tiny_llama, batch).need("logprob")[batch.target].isfinite().all()


def test_rewards_are_given_once_a_row_from_the_texts(tiny_tokenizer):
    rows = [tiny_tokenizer("the cat")["input_ids"], tiny_tokenizer(" sat")["input_ids"]]
    batch = TokenBatch.from_ids(
        [[*rows[0], *rows[1], 1]], [[False] * len(rows[0]) + [True] * (len(rows[1]) + 1)]
    )
    seen = []

    def length(prompt, completion):
        seen.append((prompt, completion))
        return len(completion)

    one = reward_rollouts(batch, tiny_tokenizer, [length])
    assert seen == [("the cat", " sat")]  # without the end token
    assert one.column("reward").tolist() == [4.0]
    two = reward_rollouts(batch, tiny_tokenizer, [length, lambda p, c: c.startswith(" ")])
    assert two.column("reward").tolist() == [[4.0, 1.0]]
    assert reward_rollouts(batch, tiny_tokenizer, []).column("reward").tolist() == [0.0]
    for bad in (math.nan, "good"):
        with pytest.raises(InputError, match="finite number"):
            reward_rollouts(batch, tiny_tokenizer, [lambda p, c, b=bad: b])


@pytest.mark.parametrize(
    "field", ["samples", "max_new_tokens", "temperature", "updates", "minibatches"]
)
def test_settings_that_sample_or_use_nothing_are_errors(field):
    with pytest.raises(InputError, match=rf"RolloutSettings\.{field} is 0"):
        RolloutSettings(**{field: 0})
    with pytest.raises(InputError, match=f"{field} is nan"):
        RolloutSettings(**{field: math.nan})


def test_rewards_may_be_numbers_of_numpy_and_torch(tiny_tokenizer):
    import numpy as np

    batch = TokenBatch.from_ids([[5, 6, 7]], [[False, True, True]])
    for number in (np.float32(2.5), np.float64(2.5), torch.tensor(2.5), torch.tensor([[2.5]])):
        given = reward_rollouts(batch, tiny_tokenizer, [lambda p, c, n=number: n])
        assert given.column("reward").tolist() == [2.5]
    whole = reward_rollouts(batch, tiny_tokenizer, [lambda p, c: np.int64(2)])
    assert whole.column("reward").tolist() == [2.0]
    for bad in (np.float32("nan"), torch.tensor([1.0, 2.0]), torch.tensor(torch.inf), "3"):
        with pytest.raises(InputError, match="the reward function"):
            reward_rollouts(batch, tiny_tokenizer, [lambda p, c, b=bad: b])


def test_a_reward_that_raises_is_named_with_its_row(tiny_tokenizer):
    def weather(prompt, completion):
        return {"sun": 1.0}[completion]

    batch = TokenBatch.from_ids([[5, 6, 7]], [[False, True, True]])
    with pytest.raises(InputError) as error:
        reward_rollouts(batch, tiny_tokenizer, [weather])
    text = str(error.value)
    completion = tiny_tokenizer.decode([6, 7])
    assert "weather failed for sample 0" in text
    assert repr(completion) in text
    assert "KeyError" in text
