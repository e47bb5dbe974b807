"""Plans against brute force, and targets against hand-made latencies."""

import json

import numpy as np
import pytest

from tokenry.core.errors import InputError, UnknownNameError
from tokenry.serving.instances import Pool
from tokenry.serving.phases import MACHINES, SHAPES, MeasuredPhases
from tokenry.serving.planner import (
    Design,
    Planner,
    designs,
    fewest_that,
    partitions,
    search_pools,
)
from tokenry.serving.policies import SharedPool
from tokenry.serving.simulation import Cluster, Served, simulate
from tokenry.serving.targets import SLO, alone_on, latencies, max_rate_under_slo
from tokenry.serving.trace import Trace, poisson_trace

A100, H100 = MACHINES["A100"], MACHINES["H100"]
PHASES = MeasuredPhases.of({1: 0.001, 1001: 1.001}, {1: 0.050, 101: 0.150})


@pytest.fixture(scope="module")
def planner():
    trace = poisson_trace(1, "coding", 300, seed=0)
    return Planner(SHAPES["llama2-70b"], trace, SLO(), A100)


def test_targets_are_the_worst_ratio_over_percentiles():
    n = 101
    trace = Trace(np.arange(n, dtype=float), np.full(n, 100), np.full(n, 11))
    slow = np.linspace(1, 5, n)  # 3 at 50 %, 4.6 at 90 %, 4.96 at 99 %
    alone = alone_on(PHASES, PHASES, trace)
    assert alone["ttft"] == pytest.approx(np.full(n, 0.1))
    assert alone["tbt"] == pytest.approx(np.full(n, 0.05))
    assert alone["e2e"] == pytest.approx(np.full(n, 0.6))
    places = np.zeros(n, dtype=int)
    served = Served(
        trace, 0.1 * slow, np.full(n, 0.05), np.full(n, 0.05), np.full(n, 0.6), places, places,
        np.ones(1),
    )  # fmt: skip
    found = latencies(served, PHASES, warm_up=0)
    assert found.slowdown["ttft"] == pytest.approx([3, 4.6, 4.96])
    assert found.load(SLO({"ttft": (6, 6, 6)})) == pytest.approx(4.96 / 6)
    assert found.load(SLO({"ttft": (1.5, 6, 6), "tbt": (1, 1, 1)})) == pytest.approx(2)
    assert "ttft of 50 %: 3x, at most 1.5x" in found.worst(SLO({"ttft": (1.5, 6, 6)}))
    assert found.load(SLO({}, {"e2e": (0.3, 0.6, 0.6)})) == pytest.approx(2)
    late = latencies(served, PHASES, warm_up=0.5)  # the first half is not counted
    assert late.slowdown["ttft"][0] == pytest.approx(slow[50:].mean())


def test_answers_of_one_token_have_no_time_between_tokens():
    trace = Trace(np.arange(60.0), np.full(60, 10), np.ones(60, dtype=int))
    served = simulate(trace, Cluster((Pool(PHASES, 1),)), SharedPool())
    assert latencies(served, PHASES).load(SLO()) == pytest.approx(0.8)  # e2e: 1 of 1.25


def test_the_largest_rate_is_on_the_edge():
    trace = poisson_trace(1, "coding", 400, seed=2)
    cluster = Cluster((Pool(PHASES, 4),))
    slo = SLO({"ttft": (3, 6, 12), "tbt": (3, 6, 20)})
    rate = max_rate_under_slo(trace, cluster, SharedPool(), slo, PHASES)
    assert rate > 0

    def load(rate):
        return latencies(simulate(trace.at_rate(rate), cluster, SharedPool()), PHASES).load(slo)

    assert load(rate) <= 1
    # a finite trace is not quite monotone: some rate just above is the one that failed
    assert max(load(rate * (1 + 0.001 * n)) for n in range(1, 25)) > 1
    assert max_rate_under_slo(trace, cluster, SharedPool(), slo, PHASES, above=1.1 * rate) == 0
    impossible = SLO({"ttft": (0.5, 0.5, 0.5)})
    assert max_rate_under_slo(trace, cluster, SharedPool(), impossible, PHASES) == 0


def test_the_cheapest_plan_is_that_of_brute_force(planner):
    rate = 6.0
    for design in (Design(None, H100), Design(A100, A100), Design(H100, A100)):
        found = planner.smallest(design, rate)
        assert found is not None
        assert found.load <= 1
        most = 9
        grid = [(n,) for n in range(1, most)]
        if design.prompt is not None:
            grid = [(m, n) for m in range(1, most) for n in range(1, 5)]
        cheaper = [c for c in grid if design.price(c, "cost") < found.price("cost") - 1e-6]
        assert all(planner.evaluate(design, counts, rate).load > 1 for counts in cheaper)


def test_plans_come_in_order_and_within_the_budget(planner):
    plans = search_pools(planner, [A100, H100], rate=3)
    costs = [plan.price("cost") for plan in plans]
    assert costs == sorted(costs)
    assert len(plans) == 6
    within = search_pools(planner, [A100, H100], rate=3, budget=costs[1])
    assert [plan.price("cost") for plan in within] == [c for c in costs if c <= costs[1]]
    with pytest.raises(InputError, match="cost budget of 10 "):
        search_pools(planner, [A100, H100], rate=3, budget=10)


def test_a_budget_alone_gives_the_largest_rate(planner):
    plans = search_pools(planner, [A100], budget=5, minimise="count")
    rates = [plan.rate for plan in plans]
    assert rates == sorted(rates, reverse=True)
    for plan in plans:
        assert sum(plan.counts) == 5
        assert plan.load <= 1
    split = next(plan for plan in plans if plan.design.prompt is not None)
    for counts in partitions(split.design, 5, "count"):  # no other division does more
        assert planner.evaluate(split.design, counts, split.rate * 1.05).load > 1


def test_designs_and_prices():
    names = [design.name for design in designs([A100, H100])]
    assert names[:2] == ["A100, shared", "H100, shared"]
    assert set(names[2:]) == {"A100 + A100", "A100 + H100", "H100 + A100", "H100 + H100"}
    mixed = Design(H100, A100)
    assert mixed.price((2, 3), "cost") == pytest.approx(2 * 38 + 3 * 17.6)
    assert mixed.price((2, 3), "power") == pytest.approx(2 * 10.2 + 3 * 6.5)
    assert mixed.price((2, 3), "count") == 5
    assert list(partitions(mixed, 100, "cost")) == [(1, 3), (2, 1)]
    assert list(partitions(Design(None, A100), 40, "cost")) == [(2,)]
    assert list(partitions(Design(None, A100), 10, "cost")) == []


@pytest.mark.parametrize("edge", [1, 2, 7, 64, 100])
@pytest.mark.parametrize("start", [1, 5])
def test_the_fewest_is_found_by_doubling(edge, start):
    tried = []

    def good(n):
        tried.append(n)
        return n >= edge

    assert fewest_that(good, start) == max(edge, start)
    assert len(tried) < 20
    assert fewest_that(good, start, most=edge - 1 if edge > start else start) in (None, start)


def test_targets_that_nothing_meets_are_named(planner):
    import dataclasses

    strict = dataclasses.replace(planner, slo=SLO({}, {"tbt": (0.001, 0.002, 0.003)}))
    with pytest.raises(
        InputError, match=r"even without load.*tbt of 50 %: 0.0301 s, at most 0.001"
    ):
        search_pools(strict, [A100, H100], rate=1)


def test_targets_are_read_and_checked(tmp_path):
    file = tmp_path / "slo.json"
    file.write_text(json.dumps({"seconds": {"ttft": [1, 2, 3]}}))
    assert SLO.read(file) == SLO({}, {"ttft": (1, 2, 3)})
    for text, says in (
        ("{", "not JSON"),
        ("[]", "must look like"),
        ('{"ttft": [1, 2, 3]}', "must look like"),
        ('{"slowdown": {"ttft": 3}}', "must look like"),
        ('{"slowdown": {"ttft": [3, 2, 1]}}', "three rising"),
        ('{"slowdown": {"ttft": [1, 2]}}', "three rising"),
        ('{"slowdown": {"ttft": ["1", "2", "3"]}}', "three rising"),
        ('{"slowdown": {}}', "without a target"),
    ):
        file.write_text(text)
        with pytest.raises(InputError, match=says):
            SLO.read(file)
    with pytest.raises(UnknownNameError, match="did you mean ttft"):
        SLO({"tttft": (1, 2, 3)})
    with pytest.raises(InputError, match="no such file"):
        SLO.read(tmp_path / "none.json")


def test_impossible_questions(planner):
    with pytest.raises(InputError, match="rate to serve or a budget"):
        search_pools(planner, [A100])
    with pytest.raises(InputError, match=r"rate is 0.*\(0, inf\)"):
        search_pools(planner, [A100], rate=0)
    with pytest.raises(InputError, match="budget is -1"):
        search_pools(planner, [A100], budget=-1)
    with pytest.raises(InputError, match="one kind of machine"):
        search_pools(planner, [], rate=1)
