"""Troubles 6 and 7: spreads that are rounding, groups of one, groups by index, of every objective.

The rule of a spread, and [0, 7 times 0.95] with leave-one-out, are `test_advantages`'s; rows that
nothing scores (trouble 8) are `tests/learn/rewards/test_scoring.py`'s first test.
"""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from policy_objectives import OnPolicy, completions, models, on_policy_cases  # noqa: F401
from tokenry.core.errors import InputError
from tokenry.learn.policy.advantages import whiten
from tokenry.learn.policy.pama import PAMA
from tokenry.learn.policy.ppo import PPO

GROUPS = [0, 2, 1, 0, 2, 0, 1, 2, 0, 1, 2]  # sizes 4, 3, 4, interleaved
LENGTHS = [3, 5, 2, 4, 3, 1, 6, 2, 4, 3, 5]
REWARDS = torch.tensor([1.0, 0.0, 0.5, 2.0, 0.0, 1.0, -1.0, 0.25, 0.75, 1.0, 0.0])
GUIDE = Path(__file__).parents[3] / "docs" / "guide" / "online.md"


@pytest.fixture(params=on_policy_cases())
def make(request):
    return request.param


def case(make, models):  # noqa: F811
    return OnPolicy(make, *models)


def test_permuting_rows_changes_nothing(make, models):  # noqa: F811
    order = torch.randperm(11, generator=torch.Generator().manual_seed(1))
    batch = completions(GROUPS, LENGTHS)
    one, other = case(make, models), case(make, models)
    ready, mixed = one.prepared(batch, REWARDS), other.prepared(batch.select(order), REWARDS[order])
    if len(ready.ids) == 11 and "advantage" in ready.columns:
        mine, theirs = ready.column("advantage")[order], mixed.column("advantage")
        torch.testing.assert_close(theirs, mine, rtol=1e-5, atol=1e-6)
    (loss, gradient), (loss_, gradient_) = one.gradient(ready), other.gradient(mixed)
    assert gradient.abs().max() > 1e-3
    torch.testing.assert_close(loss_, loss, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(gradient_, gradient, rtol=1e-5, atol=1e-6)


def test_one_bad_completion_among_equals_and_rounding_stay_in_bounds(make, models):  # noqa: F811
    batch = completions([0] * 8, [3, 5, 2, 4, 3, 1, 6, 2])
    noise = 1 + 1.2e-7 * (torch.arange(8) % 2)
    found = {}
    for name, reward in (
        ("one bad", torch.tensor([0.0, *[0.95] * 7])),
        ("equal", torch.full((8,), 0.95)),
        ("rounded", 0.95 * noise),
    ):
        own = case(make, models)
        ready = own.prepared(batch, reward)
        found[name] = own.gradient(ready)[1]
        assert found[name].isfinite().all()
        if "advantage" in ready.columns:
            assert ready.column("advantage").abs().max() < 4
    torch.testing.assert_close(found["rounded"], found["equal"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("goal", [PPO(kl=0.0), PAMA(kl=0.0)], ids=["ppo", "pama"])
def test_whitening_does_not_blow_up_rounding(goal, models):  # noqa: F811
    batch = completions(GROUPS, LENGTHS)
    reward = torch.full((11,), 0.95) * (1 + 1.2e-7 * (torch.arange(11) % 2))
    own = case(lambda: goal, models)
    assert (own.prepared(batch, reward).column("advantage") == 0).all()
    mask = torch.ones(1, 4, dtype=torch.bool)
    tiny = torch.tensor([[1e-7, -1e-7, 2e-7, 0.0]])
    assert (whiten(tiny, mask, of=torch.ones(1, 4)) == 0).all()
    assert whiten(tiny, mask).abs().max() > 1  # differences of nothing larger are differences
    assert (whiten(torch.full((1, 4), 3.0), mask, shift_mean=False) == 0).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_rewards_that_are_no_numbers_are_refused(bad, make, models):  # noqa: F811
    """By every objective that looks at rewards."""
    own = case(make, models)
    reward = REWARDS.clone()
    reward[1] = bad
    if own.goal.num_rewards == 0:
        return
    with pytest.raises(InputError, match=r"completion 1 is (nan|inf); rewards must be finite"):
        own.prepared(completions(GROUPS, LENGTHS), reward)


def what_happens(make, models, groups, one, other):  # noqa: F811
    """What an objective makes of rewards: two choices of them tell learning from a mere pull."""
    batch = completions(groups, LENGTHS[: len(groups)])
    found = []
    for reward in (one, other):
        own = case(make, models)
        ready = own.prepared(batch, torch.tensor(reward))
        if not ready.target.any():
            return "left out"
        found.append(own.gradient(ready)[1])
    if not torch.allclose(found[0], found[1], rtol=1e-4, atol=1e-6):
        return "learned from"
    return "pull alone" if found[0].abs().max() > 1e-6 else "no gradient"


@pytest.mark.parametrize("stray", [True, False])
def test_the_pull_to_the_reference_stays_where_rows_count(stray, request, make, models):  # noqa: F811
    """With beta > 0, of groups without a spread (stray: and of one completion)."""
    plain = case(make, models).goal
    if not hasattr(plain, "beta") or plain.num_rewards == 0:
        return
    groups = [0, 1, 2] if stray else [0, 0, 1]
    one, other = [1.0, 1.0, 0.0], [0.5, 0.5, 2.0]
    held = what_happens(lambda: replace(plain, beta=0.1), models, groups, one, other)
    free = what_happens(lambda: replace(plain, beta=0.0), models, groups, one, other)
    if "balanced" in request.node.callspec.id:  # a completion without a sign weighs nothing
        assert (free, held) == ("no gradient", "no gradient")
    else:
        assert (free, held) in (("no gradient", "pull alone"), ("left out", "left out"))


def table():
    rows = re.findall(r"^\| `([\w-]+)` \| ([\w ]+) \| ([\w ]+) \|", GUIDE.read_text(), re.M)
    return {key: (equal, alone) for key, equal, alone in rows}


def test_the_guide_says_what_equal_rewards_and_one_completion_mean(request, make, models):  # noqa: F811
    key = request.node.callspec.id
    equal = what_happens(make, models, [0, 0, 1, 1], [1.0, 1.0, 0.0, 0.0], [0.5, 0.5, 2.0, 2.0])
    alone = what_happens(make, models, [0, 1, 2], [1.0, 0.0, 0.5], [0.0, 2.0, 0.25])
    assert table()[re.sub(r"-\d$", "", key)] == (equal, alone)
