"""Trouble 2: completions that were cut leave the loss's numerator and denominator (trl#6369)."""

import copy

import pytest
import torch

from policy_trainer import PROMPTS, Given, logged, rewarded, run
from tokenry.core.batch import TokenBatch
from tokenry.learn.policy.gradient import AGGREGATIONS, PolicyGradient
from tokenry.learn.policy.groups import GroupAdvantage
from tokenry.learn.policy.rollouts import cut_short
from tokenry.learn.trainer import ObjectiveTrainer

CUT = {"cut_completions": "leave_out"}
FINISHED = [[[10, 11, 1]], [[20, 21, 22, 23, 1]]]
ENDLESS = [[[30, 31, 32, 33, 34, 35, 36, 37]], [[40, 41, 42, 43, 44, 45, 46, 47]]]
BOTH = [one + other for one, other in zip(FINISHED, ENDLESS, strict=True)]
REWARDS = {tuple(own): 0.5 + n for n, own in enumerate([row for rows in BOTH for row in rows])}


@pytest.fixture(scope="module")
def loaded(tiny_llama_text, tiny_tokenizer):
    return copy.deepcopy(tiny_llama_text).double(), tiny_tokenizer


def trained(goal, loaded, output, completions, **settings):
    return run(
        goal,
        loaded,
        output,
        PROMPTS[:2],
        rewards=[rewarded(REWARDS)],
        source=Given(loaded[1], completions),
        samples=len(completions[0]),
        **settings,
    )


@pytest.mark.parametrize("mode", AGGREGATIONS)
def test_the_loss_is_that_of_the_finished_ones_alone(mode, loaded, tmp_path):
    length = 7.0 if mode == "constant-length" else None
    advantage = GroupAdvantage(center=False, scale="none")
    goal = PolicyGradient(advantage, aggregation=mode, length=length)
    found, masked = trained(goal, loaded, tmp_path / "masked", BOTH, **CUT)
    alone, wanted = trained(goal, loaded, tmp_path / "alone", FINISHED)
    assert logged(found, "loss") == pytest.approx(logged(alone, "loss"))
    for name in wanted[0]:
        torch.testing.assert_close(masked[0][name], wanted[0][name], rtol=0, atol=1e-9)
    learned = trained(goal, loaded, tmp_path / "learned", BOTH)[1]
    assert any(not torch.allclose(learned[0][name], wanted[0][name]) for name in wanted[0])


def test_they_stay_in_the_baseline_and_in_the_logged_lengths(loaded, tmp_path, monkeypatch):
    seen, real = [], ObjectiveTrainer._roll_out
    monkeypatch.setattr(
        ObjectiveTrainer,
        "_roll_out",
        lambda self, inputs: seen.append(real(self, inputs)) or seen[-1],
    )
    goal = PolicyGradient(GroupAdvantage(scale="none"))
    found, _ = trained(goal, loaded, tmp_path, BOTH, **CUT)
    ids, advantage = seen[0]["ids"], seen[0]["column.advantage"]
    own = [row[target].tolist() for row, target in zip(ids, seen[0]["target"], strict=True)]
    assert own == [FINISHED[0][0], FINISHED[1][0]]
    # rewards 0.5 and 1.5, then 2.5 and 3.5: half a point below the mean of each group
    assert [float(a[t][0]) for a, t in zip(advantage, seen[0]["target"], strict=True)] == [-0.5] * 2
    assert logged(found, "completions/length") == [pytest.approx((3 + 5 + 8 + 8) / 4)]
    assert logged(found, "completions/cut") == [0.5]
    assert logged(found, "completions/left_out") == [0.5]
    assert logged(found, "rewards/mean") == [pytest.approx(2.0)]


@pytest.mark.parametrize("goal", ["grpo", "dapo", "dr-grpo", "balanced", "ppo"])
def test_when_all_were_cut_there_is_no_gradient(goal, loaded, tmp_path):
    found, gradients = trained(goal, loaded, tmp_path, ENDLESS, **CUT)
    assert all((g == 0).all() for one in gradients for g in one.values())
    assert logged(found, "loss") == [0.0]
    assert logged(found, "completions/cut") == [1.0]
    assert logged(found, "completions/left_out") == [1.0]
    assert logged(found, "completions/length") == [8.0]
    before = loaded[0].state_dict()
    assert all(torch.equal(value, before[name]) for name, value in found.model.state_dict().items())


def test_what_is_cut_is_what_has_no_end_token_wherever_padding_stands():
    rows = [[5, 6, 7], [5, 6, 7, 8, 1], [5, 1, 6]]
    for side in ("left", "right"):
        batch = TokenBatch.from_ids(rows, padding_side=side)
        assert cut_short(batch, [1, 3]).tolist() == [True, False, True]
        assert cut_short(batch, [7]).tolist() == [False, True, True]
        assert cut_short(batch, []) is None
