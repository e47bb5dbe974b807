"""What is made of rewards: left out and counted where there is none, never 0."""

import math
from dataclasses import replace

import pytest
import torch

from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError
from tokenry.learn.policy.groups import GroupAdvantage
from tokenry.learn.policy.rollout_batch import RolloutBatch
from tokenry.learn.policy.rollouts import RolloutSettings, reward_rollouts
from tokenry.learn.rewards.scoring import Rewards, Rows

pytestmark = pytest.mark.workers


def rows(*completions, **columns):
    count = len(completions)
    ids = [[5] * (len(text) + 1) for text in completions]
    return Rows(["p"] * count, completions, ids, [0] * count, columns)


def skipping(*functions):
    return Rewards.of(functions, on_error="skip")


def by_text(table):
    """A function of TRL's signature that looks its values up, and raises for what is none."""

    def lookup(prompts, completions, **columns):
        return [table[text] for text in completions]

    return lookup


def case(tokenizer, count, groups=None):
    """Rollouts whose completion is `n` tokens for row n - 1."""
    ids = [[5, 6, *[7] * (n + 1)] for n in range(count)]
    targets = [[False, False, *[True] * (n + 1)] for n in range(count)]
    batch = TokenBatch.from_ids(ids, targets)
    texts = [tokenizer.decode([7] * (n + 1)) for n in range(count)]
    return replace(batch, group=torch.tensor(groups or [0] * count)), texts


def test_a_row_that_no_function_scores_has_no_part_in_the_baseline(tiny_tokenizer):
    batch, texts = case(tiny_tokenizer, 4)
    table = dict(zip(texts, [1.0, None, 0.0, 1.0], strict=True))
    rewards = Rewards.of([by_text(table)])
    scored = reward_rollouts(batch, tiny_tokenizer, rewards)
    assert scored.column("reward").tolist() == [1.0, 0.0, 1.0]
    assert torch.equal(scored.ids, batch.ids[[0, 2, 3]])
    advantage = GroupAdvantage(scale="none")(RolloutBatch(scored))
    torch.testing.assert_close(advantage, torch.tensor([1 / 3, -2 / 3, 1 / 3]))  # baseline 2/3
    assert rewards.counts == {"lookup": {"unscored": 1}}
    assert int(scored.target.sum()) == 1 + 3 + 4  # nor in the loss's denominator


def test_none_of_one_function_is_absent_from_the_sum_of_the_others(tiny_tokenizer):
    batch, texts = case(tiny_tokenizer, 3)
    one = by_text(dict(zip(texts, [1.0, None, None], strict=True)))
    other = by_text(dict(zip(texts, [0.5, 0.25, None], strict=True)))
    scored = reward_rollouts(batch, tiny_tokenizer, [one, other])
    assert RolloutBatch(scored).total_reward.tolist() == [1.5, 0.25]
    with pytest.raises(InputError, match=r"lookup has no value for sample 1, .* compares each"):
        reward_rollouts(batch, tiny_tokenizer, [one, other], separate=True)


def test_a_function_that_fails_leaves_the_row_out_whatever_others_say(tiny_tokenizer):
    batch, texts = case(tiny_tokenizer, 3)
    broken = by_text(dict(zip(texts, [1.0, math.nan, 2.0], strict=True)))
    rewards = skipping(broken, lambda prompt, completion: 10.0)
    with pytest.warns(UserWarning, match=r"lookup gave nan.* sample 1.* 1 of 3 rows"):
        scored = reward_rollouts(batch, tiny_tokenizer, rewards)
    assert scored.column("reward").tolist() == [[1.0, 10.0], [2.0, 10.0]]
    assert rewards.counts["lookup"] == {"not finite": 1}


def test_where_no_row_is_left_one_without_targets_stands(tiny_tokenizer):
    batch, texts = case(tiny_tokenizer, 3)
    scored = reward_rollouts(batch, tiny_tokenizer, [by_text(dict.fromkeys(texts))])
    assert len(scored.ids) == 1
    assert not scored.target.any()
    assert scored.column("reward").tolist() == [0.0]
    assert GroupAdvantage()(RolloutBatch(scored)).tolist() == [0.0]


def test_groups_and_columns_follow_their_prompts(tiny_tokenizer):
    batch, _ = case(tiny_tokenizer, 4, [1, 0, 1, 0])
    seen = {}

    def look(prompts, completions, completion_ids, groups, answer, **rest):
        seen.update(ids=completion_ids, groups=groups, answer=answer, rest=rest)
        return [float(value) for value in answer]

    data = {"answer": [10, 20], "level": ["a", "b"]}
    scored = reward_rollouts(batch, tiny_tokenizer, [look], data)
    assert scored.column("reward").tolist() == [20.0, 10.0, 20.0, 10.0]
    assert seen["ids"] == [[7], [7, 7], [7] * 3, [7] * 4]
    assert seen["groups"] == [1, 0, 1, 0]
    assert seen["rest"] == {"level": ["b", "a", "b", "a"]}


def test_per_token_lists_stand_at_their_tokens_and_sum_up_to_the_reward(tiny_tokenizer):
    ids = torch.tensor([[5, 6, 7, 8, 9, 0], [5, 6, 7, 0, 0, 0]])
    target = torch.tensor([[0, 0, 1, 0, 1, 0], [0, 0, 1, 0, 0, 0]]).bool()  # 8: another's
    batch = TokenBatch(ids, ids != 0, target, torch.tensor([0, 0]))
    dense = lambda prompts, completions: [[1.0, 5.0, 0.25], None]  # noqa: E731
    whole = lambda prompts, completions: [2.0, 3.0]  # noqa: E731
    scored = reward_rollouts(batch, tiny_tokenizer, [dense, whole])
    assert scored.column("reward").tolist() == [[1.25, 2.0], [0.0, 3.0]]
    assert scored.column("token_reward").tolist() == [[0, 0, 1, 0, 2.25, 0], [0, 0, 3, 0, 0, 0]]
    assert "token_reward" not in reward_rollouts(batch, tiny_tokenizer, [whole]).columns
    short = lambda prompts, completions: [[1.0], [1.0]]  # noqa: E731
    with pytest.raises(InputError, match="gave 1 numbers for the 3 tokens for sample 0"):
        reward_rollouts(batch, tiny_tokenizer, [short])


def test_a_batch_that_fails_is_asked_row_by_row_and_the_others_are_kept_together():
    calls = []

    def mean_length(prompts, completions, **columns):
        calls.append(list(completions))
        if "bad" in completions:
            raise ValueError("bad row")
        return [sum(map(len, completions)) / len(completions)] * len(completions)

    rewards = skipping(mean_length)
    with pytest.warns(UserWarning, match="ValueError: bad row; 1 of 3 rows"):
        scored = rewards(rows("a", "bad", "ccc"))
    assert scored.values == [[2.0, None, 2.0]]  # of the two together, not of each alone
    assert scored.kept() == [0, 2]
    assert calls == [["a", "bad", "ccc"], ["a"], ["bad"], ["ccc"], ["a", "ccc"]]
    with pytest.raises(InputError, match=r"mean_length failed for sample 1, .*'bad'.*bad row"):
        Rewards.of([mean_length])(rows("a", "bad", "ccc"))


@pytest.mark.parametrize("given", [[1.0], 3.0, None, [1.0] * 3])
def test_the_wrong_number_of_values_fails_the_batch(given):
    wrong = lambda prompts, completions: given  # noqa: E731
    with pytest.raises(InputError, match=r"failed for sample 0, .*: it gave"):
        Rewards.of([wrong])(rows("a", "b"))
    with pytest.warns(UserWarning, match="2 of 2 rows"):
        assert skipping(wrong)(rows("a", "b")).kept() == []


def test_a_hang_loses_its_row_alone(tmp_path):
    (tmp_path / "slow.py").write_text(
        "import time\n"
        "def slow(prompts, completions):\n"
        "    while 'hang' in completions: time.sleep(1)\n"
        "    return [1.0] * len(completions)\n"
    )
    rewards = Rewards.of([f"{tmp_path}/slow.py:slow"], 0.5, "skip")
    with pytest.warns(UserWarning, match=r"slow failed for sample 1, .* no answer in 0.5 seconds"):
        assert rewards(rows("a", "hang", "b")).kept() == [0, 2]
    assert rewards(rows("hang")).kept() == []  # no second warning
    assert rewards.counts == {"slow": {"hung": 2}}
    rewards.on_error = "raise"
    with pytest.raises(InputError, match=r"slow failed for sample 2, .*no answer in 0.5 seconds"):
        rewards(rows("a", "b", "hang"))
    rewards.close()


def test_a_column_that_the_data_lack_is_named_before_training():
    wants = lambda completions, answer, tone="dry": [0.0]  # noqa: E731
    rewards = Rewards.of([wants])
    assert rewards.columns([{"prompt": "x", "answer": 1, "other": 2}]) == (["answer"], False)
    assert rewards.columns([{"answer": None, "tone": 1}, {"answer": 1}]) == (
        ["answer", "tone"],
        False,
    )
    with pytest.raises(InputError, match=r'asks for the column "answer".*: prompt, other\)'):
        rewards.columns([{"prompt": "x", "other": 2, "answer": None}])
    with pytest.raises(InputError, match='column "answer"'):
        rewards(rows("y", other=[2]))


def test_settings_are_checked():
    with pytest.raises(InputError, match="reward_timeout is 0"):
        RolloutSettings(reward_timeout=0)
    with pytest.raises(InputError, match="on_reward_error is 'zero'"):
        RolloutSettings(on_reward_error="zero")
    assert (RolloutSettings().reward_timeout, RolloutSettings().on_reward_error) == (60.0, "raise")
