"""The problems: answers against solvers that share no code, sizes, step counts, scoring."""

from math import ceil, log2
from random import Random

import pytest

from tail_solvers import SOLVERS, best_subset, knapsack
from tokenry.core.errors import InputError
from tokenry.tasks.distinct import split
from tokenry.tasks.suites.tail.algorithm import tier_sizes
from tokenry.tasks.suites.tail.task import ALGORITHMS, TailTraces
from tokenry.tasks.suites.tail.trace import Machine

EACH = pytest.mark.parametrize("name", ALGORITHMS)
TIERS = ("S", "M", "L")
PARADIGMS = {
    "simulation": 5,
    "recursion": 2,
    "iteration": 1,
    "greedy": 2,
    "enumeration": 3,
    "divide and conquer": 1,
    "dynamic programming": 3,
    "backtracking": 1,
}


def steps_of(name, inputs):
    machine = Machine(ALGORITHMS[name].tape(inputs))
    ALGORITHMS[name].run(inputs, machine)
    return machine.steps


def test_there_are_18_problems_in_8_classes():
    names = [algorithm.paradigm for algorithm in ALGORITHMS.values()]
    assert {name: names.count(name) for name in names} == PARADIGMS
    assert sum(PARADIGMS.values()) == len(ALGORITHMS) == 18
    assert set(SOLVERS) == set(ALGORITHMS)


@EACH
@pytest.mark.parametrize("tier", TIERS)
def test_the_last_line_is_the_answer_and_the_size_is_of_the_tier(name, tier):
    algorithm, made = ALGORITHMS[name], TailTraces(name, tier)
    low, high = tier_sizes(algorithm)[tier]
    for item in made.items({"S": 60, "M": 20, "L": 6}[tier], 11):
        inputs = item.about["inputs"]
        assert low <= algorithm.size(inputs) <= high
        answer = str(SOLVERS[name](**inputs))
        assert item.solution.split("\n")[-1] == f"= {answer}"
        assert made.score(item, f"{item.solution}\n") == {"right": 1.0, "trace": 1.0}
        assert len(item.solution) <= item.request.limit
        assert len(steps_of(name, inputs)) >= 3


@EACH
def test_tiers_follow_each_other_and_l_ends_at_six_times_s(name):
    sizes = tier_sizes(ALGORITHMS[name])
    assert sizes["S"][1] + 1 == sizes["M"][0] <= sizes["M"][1] == sizes["L"][0] - 1
    assert sizes["L"][1] == 6 * sizes["S"][1]
    train, test = split(TailTraces(name), [30, 30], 5)
    assert not {repr(item.request) for item in train} & {repr(item.request) for item in test}


def test_the_worked_addition():
    assert TailTraces("addition").trace({"a": "57", "b": "68"}) == [
        "i0: a0=7 b0=8 c=0 -> t=15 s0=5 c=1 ; i1",
        "i1: a1=5 b1=6 c=1 -> t=12 s1=2 c=1 ; i2",
        "i2: a2=- b2=- c=1 -> t=1 s2=1 c=0 ; end",
        "= 125",
    ]
    assert TailTraces("addition").trace({"a": "5", "b": "3"})[-2:] == [
        "i1: a1=- b1=- c=0 -> t=0 s1=- c=0 ; end",
        "= 8",
    ]


def test_the_number_of_steps_is_that_of_the_program():
    draws = {name: TailTraces(name, "M").items(10, 1) for name in ALGORITHMS}

    def counts(name):
        inputs = [item.about["inputs"] for item in draws[name]]
        return [(one, ALGORITHMS[name].size(one), len(steps_of(name, one))) for one in inputs]

    assert all(steps == n + 1 for _, n, steps in counts("addition"))
    assert all(steps == n for _, n, steps in counts("division"))
    assert all(steps == n * (n - 1) // 2 for _, n, steps in counts("bubble_sort"))
    assert all(steps == 2 * n for _, n, steps in counts("word_flip"))
    assert all(steps == 2 * n for _, n, steps in counts("population_growth"))
    assert all(steps == n * one["capacity"] for one, n, steps in counts("knapsack"))
    assert all(steps == 2 * n for _, n, steps in counts("diophantine"))
    for name in ("lcs", "levenshtein"):
        assert all(steps == len(one["a"]) * len(one["b"]) for one, _, steps in counts(name))
    assert all(steps / 2 <= ceil(log2(n + 1)) for _, n, steps in counts("binary_search"))
    assert all(steps / 2 >= int(log2(n)) for _, n, steps in counts("binary_search"))


@EACH
def test_lines_hardly_grow_with_the_tier(name):
    longest = {
        tier: max(
            len(line)
            for item in TailTraces(name, tier).items(6, 3)
            for line in item.solution.split("\n")[:-1]
        )
        for tier in ("S", "L")
    }
    assert longest["L"] <= longest["S"] + 32  # the width of indices and of values


@EACH
def test_near_misses_of_the_last_line_are_wrong(name):
    made = TailTraces(name)
    for item in made.items(5, 4):
        *steps, last = item.solution.split("\n")
        misses = [last[2:], f"{last}.", f"{last} {last}", last.replace("= ", "=="), f"{last}\nx"]
        misses += [last + "0", "= ", "", "=", "\n".join(steps), "\x00" * 5000]
        assert [made.score(item, miss)["right"] for miss in misses] == [0.0] * len(misses)
        assert made.score(item, last)["right"] == 1.0  # what counts is the answer
        half = "\n".join([*steps[:2], "wrong", *steps[3:], last])
        assert made.score(item, half) == {"right": 1.0, "trace": 2 / (len(steps) + 1)}


def test_the_solver_of_the_knapsack_tries_every_choice():
    random = Random(0)
    for _ in range(50):
        inputs = ALGORITHMS["knapsack"].sample(random, 2, 7)
        assert knapsack(**inputs) == best_subset(**inputs)


@pytest.mark.parametrize("wrong", [{"problem": "chess"}, {"tier": "XL"}, {"style": "verse"}])
def test_settings_are_checked(wrong):
    with pytest.raises(InputError):
        TailTraces(**{"problem": "addition", **wrong})
