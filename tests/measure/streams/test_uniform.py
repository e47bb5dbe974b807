import math

import pytest

from tokenry.measure.streams.base import ArmStream, play
from tokenry.measure.streams.uniform import NaiveSearch, UniformExploration

MEANS = [0.25, 0.875, 0.5, 0.75]


def stream(budget, means=MEANS):
    return ArmStream([lambda n, _, mean=mean: mean * n for mean in means], budget)


def test_pulls_of_each_arm_are_the_papers():
    assert UniformExploration().pulls(100, 10**6) == pytest.approx(1113.8, abs=0.05)
    assert NaiveSearch().pulls(100, 10**6) == pytest.approx(2137.5, abs=0.05)


@pytest.mark.parametrize("method", [UniformExploration(), NaiveSearch()])
def test_regret_without_noise_is_that_of_the_exploration(method):
    budget = 10_000
    result = play(method, stream(budget))
    each = math.ceil(method.pulls(4, budget))
    assert result.pulls == (each, budget - 3 * each, each, each)
    assert result.regret(MEANS) == pytest.approx(each * sum(0.875 - mean for mean in MEANS))


def test_the_first_of_equal_arms_stays():
    assert play(UniformExploration(), stream(1000, [0.5, 0.5, 0.5])).arm == 0


def test_a_budget_that_ends_among_the_arms_chooses_the_best_of_those_that_were_pulled():
    each = math.ceil(UniformExploration().pulls(4, 3))
    assert 4 * each > 3
    result = play(UniformExploration(), stream(3))
    assert sum(result.pulls) == 3
    assert result.pulls[result.arm] > 0
