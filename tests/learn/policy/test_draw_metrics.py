"""What the log says of a draw: worked by hand, split as it may be."""

import math
from statistics import stdev

import pytest
import torch

from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError
from tokenry.core.scores import Scores
from tokenry.learn.policy.draw_metrics import draw_metrics
from tokenry.learn.policy.rollouts import REWARD_GIVEN, RolloutSettings

LENGTHS = [2, 4, 1, 3, 5, 2]
REWARD = torch.tensor([1.0, 0.0, 0.5, 0.5, 1.0, 2.0])
GROUP = [3, 7, 5, 5, 3, 7]
RIGHT = {"pass_reward": 1.0, "samples": 2}


def drawn(reward=REWARD, lengths=LENGTHS, group=GROUP):
    rows = [[9, *range(1, 1 + n)] for n in lengths]
    batch = TokenBatch.from_ids(rows, [[False] + [True] * n for n in lengths], group=group)
    return batch.with_columns(reward=reward)


def means(measured):
    return {name: float(total / number) for name, (total, number) in measured.items()}


def test_worked_example():
    batch = drawn()
    cut = torch.tensor([True, False, False, False, False, False])
    found = means(draw_metrics(batch, batch, batch.select([0, 1]), ["only"], cut=cut, **RIGHT))
    assert found == {
        "completions/length": pytest.approx(17 / 6),
        "completions/length/right": pytest.approx((2 + 5 + 2) / 3),
        "completions/length/wrong": pytest.approx((4 + 1 + 3) / 3),
        "completions/cut": pytest.approx(1 / 6),
        "completions/left_out": pytest.approx(4 / 6),
        "rewards/left_out": 0.0,
        "rewards/mean": pytest.approx(5 / 6),
        "rewards/spread": pytest.approx((0 + stdev([0.0, 2.0]) + 0) / 3),
        "groups/without_spread": pytest.approx(2 / 3),
        "pass@1": pytest.approx((1 + 0.5 + 0) / 3),
        "pass@2": pytest.approx(2 / 3),
    }


@pytest.mark.parametrize(
    ("samples", "right", "rates"),
    [
        (4, 1, {1: 1 / 4, 2: 1 / 2, 4: 1.0}),
        (6, 2, {1: 1 / 3, 2: 1 - 6 / 15, 4: 1 - 1 / 15, 6: 1.0}),
        (3, 0, {1: 0.0, 2: 0.0, 3: 0.0}),
    ],
)
def test_pass_at_k_is_over_every_choice_of_k(samples, right, rates):
    reward = torch.tensor([1.0] * right + [0.0] * (samples - right))
    batch = drawn(reward, [2] * samples, [0] * samples)
    found = means(draw_metrics(batch, batch, batch, ["only"], pass_reward=1.0, samples=samples))
    assert {k: found[f"pass@{k}"] for k in rates} == pytest.approx(rates)
    assert {name for name in found if "@" in name} == {f"pass@{k}" for k in rates}


def test_a_group_that_lost_completions_counts_only_for_smaller_k():
    batch = drawn().select([0, 1, 2, 4])  # groups 3 of two, 7 and 5 of one each
    measured = draw_metrics(drawn(), batch, batch, ["only"], **RIGHT)
    assert measured["pass@1"].tolist() == [1.0, 3]
    assert measured["pass@2"].tolist() == [1.0, 1]
    assert measured["rewards/left_out"].tolist() == [2, 6]
    assert measured["rewards/spread"].tolist() == [0.0, 1]
    assert measured["groups/without_spread"].tolist() == [3, 3]


def test_parts_add_up_to_the_whole():
    whole = drawn()
    parts = [whole.select([0, 4]), whole.select([1, 2, 3, 5])]
    both = [draw_metrics(part, part, part, ["only"], **RIGHT) for part in parts]
    one = draw_metrics(whole, whole, whole, ["only"], **RIGHT)
    for name, total in one.items():
        torch.testing.assert_close(sum(part[name] for part in both if name in part), total)


def test_functions_are_told_apart_and_count_where_they_had_a_value():
    reward = torch.stack([REWARD, torch.tensor([0.0, 3.0, 0.0, 1.0, 0.0, 5.0])], -1)
    given = torch.tensor([[True, n % 2 == 1] for n in range(6)])
    batch = drawn(reward).with_columns(**{REWARD_GIVEN: given})
    found = means(draw_metrics(batch, batch, batch, ["a", "b"]))
    assert found["rewards/mean"] == pytest.approx((5 + 9) / 6)
    assert found["rewards/a/mean"] == pytest.approx(5 / 6)
    assert found["rewards/b/mean"] == pytest.approx(3.0)
    assert found["rewards/b/spread"] == pytest.approx(math.sqrt(2))  # 3 and 5, of group 7
    assert {"rewards/f 1/mean", "rewards/f 2/mean"} < set(
        draw_metrics(batch, batch, batch, ["f", "f"])
    )


def test_entropy_and_kl_are_means_over_the_policys_tokens():
    batch = drawn(lengths=[2, 1], reward=REWARD[:2], group=[0, 0])
    own = torch.tensor([[9.0, -1.0, -2.0], [9.0, -3.0, 9.0]])
    entropy = torch.tensor([[9.0, 1.0, 2.0], [9.0, 0.6, 9.0]])
    policy = Scores(batch.ids, batch.target, logprob=own, entropy=entropy)
    reference = Scores(batch.ids, batch.target, logprob=own - torch.tensor([[0.0, 0.5, -0.25]] * 2))
    measured = draw_metrics(batch, batch, batch, policy=policy, reference=reference)
    assert means(measured)["entropy"] == pytest.approx(1.2)
    k3 = [math.exp(-0.5) - 1 + 0.5, math.exp(0.25) - 1 - 0.25, math.exp(-0.5) - 1 + 0.5]
    assert means(measured)["kl/reference"] == pytest.approx(sum(k3) / 3)
    assert not {name for name in measured if name.startswith(("rewards", "groups", "pass"))}


def test_settings_are_checked():
    for bad in ({"cut_completions": "drop"}, {"pass_reward": math.nan}, {"pass_reward": "1"}):
        with pytest.raises(InputError, match=next(iter(bad))):
            RolloutSettings(**bad)
    assert (RolloutSettings().cut_completions, RolloutSettings().pass_reward) == ("learn", None)
