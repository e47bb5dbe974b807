"""GTPO: the published conflicts, the entropy filter, and the plain policy gradient without both."""

import math
from dataclasses import replace

import pytest
import torch

from policy_variants import (
    assert_gradient,
    assert_same,
    on,
    prepared,
    random_tokens,
    rollouts,
    step,
)
from tokenry.core.errors import InputError
from tokenry.learn.policy.conflicts import conflict_runs
from tokenry.learn.policy.gtpo import GTPO
from tokenry.learn.policy.presets import GRPO
from tokenry.learn.policy.surrogate import Clip

IDS = [[5, 6, 7, 8, 9], [5, 6, 3, 4, 9], [5, 2, 3, 9], [5, 6, 7, 9]]
SIGNS = [1.0, 1.0, -1.0, -1.0]
WEIGHTS = [[2, 2, 2, 1, 2], [2, 2, 2, 1, 2], [0, 1, 1, 0], [0, 0, 0, 0]]


def example(side="right", **changes):
    given = {"ids": IDS, "rewards": SIGNS, "group": [0] * 4, **changes}
    return rollouts(given["ids"], given["rewards"], given["group"], given["ids"], side)


def flat_entropy(batch, nats=0.0):
    return torch.where(batch.target, float(nats), 0.0).double()


def weights_of(batch):
    ready = prepared(GTPO(start_entropy=0.0), batch, entropy=flat_entropy(batch))
    weights = ready.column("conflict_weight")
    return [row[mask].tolist() for row, mask in zip(weights, ready.target, strict=True)]


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_worked_conflicts_whatever_the_padding(side):
    batch = example(side)
    assert weights_of(batch) == WEIGHTS
    assert GTPO().weight == 2.0


def test_the_worked_runs():
    batch = example()
    forward, backward = conflict_runs(
        batch.ids, batch.target, torch.tensor(SIGNS), torch.zeros(4).long()
    )
    rows = [run[batch.target].int().tolist() for run in (forward, backward)]
    assert rows[0] == [1, 1, 1, 0, 0, 1, 1, 1, 0, 0, 1, 0, 0, 0, 1, 1, 1, 0]
    assert rows[1] == [0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1]


def test_a_token_in_both_runs_weighs_w_twice_and_other_groups_do_not_count():
    same = example(ids=[[5, 6], [5, 6]], rewards=[1.0, 0.0], group=[0, 0])
    assert weights_of(same) == [[4, 4], [0, 0]]
    apart = example(ids=[[5, 6]] * 4, rewards=[1.0, 0.0, 1.0, 1.0], group=[0, 0, 1, 1])
    assert weights_of(apart) == [[4, 4], [0, 0], [1, 1], [1, 1]]
    own = example(ids=[[5, 6]] * 3, rewards=[1.0, 0.0, 0.5], group=[0] * 3)
    assert weights_of(own) == [[4, 4], [0, 0], [1, 1]]  # A = 0: of no sign


def test_a_protected_token_has_no_gradient_at_all():
    batch = example()
    goal = GTPO(start_entropy=0.0)
    ready = prepared(goal, batch, entropy=flat_entropy(batch, 0.3))
    _, gradient, _ = step(goal, ready, random_tokens(batch, 4))
    zero = ready.column("conflict_weight") == 0
    assert (gradient[zero] == 0).all()
    assert (gradient[~zero & batch.target] != 0).all()


@pytest.mark.parametrize(
    ("start", "limit", "last"), [(0.4, 2, 0), (0.8, 2, 1), (0.4, 2.5, 1), (math.log(2), 2, 1)]
)
def test_completions_that_are_too_uncertain_are_left_out_unless_the_policy_began_so(
    start, limit, last
):
    """Mean entropies 0.5 and 0.9 about ln 2, and below ln 2.5."""
    batch = rollouts([2, 2], [1.0, 0.0], [0, 0], [[1, 2], [3, 4]])
    entropy = on(batch, [[0.4, 0.6], [0.8, 1.0]])
    goal = GTPO(start_entropy=start, limit=math.log(limit))
    ready = prepared(goal, batch, entropy=entropy)
    a = 0.5 / (math.sqrt(0.5) + 1e-4)
    wanted = [a - 0.05, (-a - 0.09) * last]
    assert ready.column("advantage")[:, 1].tolist() == pytest.approx(wanted)
    gradient = step(goal, ready, torch.zeros(batch.shape))[1]
    assert bool((gradient[1] != 0).any()) == bool(last)
    assert GTPO().limit == pytest.approx(0.6931, abs=1e-4)


def test_the_entropy_of_the_beginning_is_that_of_the_first_rollouts_of_a_training():
    batch = rollouts([2, 4], [1.0, 0.0], [0, 0])
    goal = GTPO()
    modules = goal.modules(None)
    state = modules["ConflictAdvantage"]
    modules.eval()
    prepared(goal, batch, modules=modules, entropy=flat_entropy(batch, 0.2))
    assert state.start_entropy.isnan()
    modules.train()
    first = prepared(goal, batch, modules=modules, entropy=flat_entropy(batch, 0.2))
    assert state.start_entropy.item() == pytest.approx(0.2)
    later = prepared(goal, batch, modules=modules, entropy=flat_entropy(batch, 0.8))
    assert state.start_entropy.item() == pytest.approx(0.2)
    assert (first.column("advantage")[batch.target] != 0).all()
    assert (later.column("advantage") == 0).all()
    fresh = goal.modules(None)
    prepared(goal, batch, modules=fresh, entropy=flat_entropy(batch, 0.8))
    assert state.start_entropy.isfinite()
    assert fresh.state_dict()["ConflictAdvantage.start_entropy"].item() == pytest.approx(0.8)


@pytest.mark.parametrize("divide", [False, True])
def test_against_the_definition_written_out(divide):
    batch = example()
    entropy = random_tokens(batch, 9).abs() * 0.3
    goal = GTPO(gamma=0.2, weight=3.0, start_entropy=0.1, divide_by_conflicts=divide)
    ready = prepared(goal, batch, entropy=entropy)
    a = 1 / (math.sqrt(4 / 3) + 1e-4)

    def by_hand(x):
        total = 0.0
        for row, weights in enumerate(WEIGHTS):
            n = len(weights)
            shaped = SIGNS[row] * a - 0.2 * float(entropy[row].sum()) / n
            count = sum(w != 1 for w in weights) if divide else 1
            for t, w in enumerate(weights):
                w = {2: 3.0}.get(w, w) / max(1, count)
                total = total - shaped * w * x[row, 1 + t].exp() / n / 4
        return total

    assert_gradient(by_hand, goal, ready, random_tokens(batch, 5, 0.3))


def test_without_conflicts_costs_and_filter_it_is_grpo_without_clip():
    neutral = GTPO(gamma=0.0, limit=math.inf, start_entropy=0.0)
    own = [[20 * row + t for t in range(n)] for row, n in enumerate((2, 4, 7, 1, 3, 5))]
    batch = rollouts(ids=own)
    open_clip = replace(GRPO().composed(), clip=Clip(None, None))
    assert_same(neutral, open_clip, batch=batch, entropy=flat_entropy(batch, 5.0))


def test_groups_of_one_and_equal_rewards_only_pay_for_their_entropy():
    batch = rollouts([2, 3, 3], [1.0, 0.5, 0.5], [0, 1, 1])
    ready = prepared(GTPO(start_entropy=0.0), batch, entropy=flat_entropy(batch, 0.5))
    assert (ready.column("conflict_weight")[batch.target] == 1).all()
    assert ready.column("advantage")[batch.target].tolist() == pytest.approx([-0.05] * 8)


@pytest.mark.parametrize(
    "change", [{"weight": 0.5}, {"gamma": -0.1}, {"limit": 0.0}, {"start_entropy": math.nan}]
)
def test_impossible_settings_are_refused(change):
    with pytest.raises(InputError):
        GTPO(**change)
