"""Tournament: its levels' numbers, who goes up, and how the last comparison is made."""

import math

import pytest

from tokenry.core.errors import InputError
from tokenry.measure.streams.base import ArmStream, play
from tokenry.measure.streams.tournament import Level, Tournament

TENTH = 10**-0.5  # an epsilon whose 1 / epsilon^2 is 10


def levels(form, arms, epsilon=TENTH):
    return Tournament(form).levels(arms, epsilon * (1 + 1e-9))  # 1 / epsilon^2 just below 10


def test_levels_of_the_log_form():
    found = levels("log", 500)  # floor(ln 500) = 6
    assert [level.pulls for level in found] == [10, 12, 15, 18, 21, 25]  # ceil(1.2^l 10)
    assert [level.capacity for level in found] == [60, 72, 90, 108, 126, math.inf]


def test_levels_of_the_log_log_form():
    found = levels("log log", 500)  # floor(ln ln 500) + 1 = 2
    assert found == [Level(10, 100), Level(63, math.inf)]  # ceil(10 ln 500)
    assert len(levels("log log", 10**9)) == 4


def test_levels_of_the_log_star_form():
    found = levels("log*", 500)
    assert [level.pulls for level in found] == [20, 40, 63]
    assert [level.capacity for level in found] == pytest.approx([40, 80, math.inf], rel=1e-6)
    assert [level.pulls for level in levels("log*", 10**9)] == [20, 40, 160, 208]
    assert levels("log*", 10**9)[2].capacity == pytest.approx(10 * 2**14, rel=1e-6)


@pytest.mark.parametrize("form", ["log", "log log", "log*"])
def test_there_is_one_level_at_least_and_memory_is_a_champion_of_each(form):
    for arms in (1, 2, 3, 1000):
        assert Tournament(form).memory(arms) == len(levels(form, arms)) >= 1
        assert levels(form, arms)[-1].capacity == math.inf


def test_defaults_and_refusals():
    assert Tournament() == Tournament("log", 1.2, None)
    assert Tournament(capacity=2.0).levels(500, 1.0)[0] == Level(1, 2.0)
    for wrong in ({"form": "loglog"}, {"base": 0.9}, {"capacity": 0}):
        with pytest.raises(InputError):
            Tournament(**wrong)


def recorded(means, budget, method):
    """The pulls in their order, (arm, how many), of arms without noise; and the result."""
    pulls = []

    def arm(number):
        def pull(count, generator):
            pulls.append((number, count))
            return means[number] * count

        return pull

    stream = ArmStream([arm(number) for number in range(len(means))], budget)
    return pulls, play(method, stream)


def test_the_champion_goes_up_when_its_level_has_spent_more_than_its_capacity():
    """Capacity 2 b: the third arm at a level is one too many, and its champion goes up."""
    means = [0.1, 0.3, 0.2, 0.9, 0.5, 0.6, 0.7, *[0.05] * 20]  # floor(ln 27) = 3 levels
    method = Tournament(capacity=2.0)
    budget = 10**5
    first, second, _ = (level.pulls for level in method.levels(27, (27 / budget) ** (1 / 3)))
    pulls, result = recorded(means, budget, method)
    assert pulls[:4] == [(0, first), (1, first), (2, first), (1, second)]
    assert pulls[4:8] == [(3, first), (4, first), (5, first), (3, second)]
    assert result.arm == 3


def test_champions_are_compared_anew_in_the_end():
    """Two arms at the first level after one that went up: both champions are pulled b_0 times."""
    means = [0.9, 0.1, 0.1, 0.5, *[0.2] * 4]  # floor(ln 8) = 2 levels
    method = Tournament(capacity=2.0)
    first, second = (level.pulls for level in method.levels(8, (8 / 10**5) ** (1 / 3)))
    pulls, result = recorded(means, 10**5, method)
    kinds = [(3, first), (4, first), (5, first), (3, second), (6, first), (7, first)]
    assert pulls[4:10] == kinds
    assert pulls[10:12] == [(6, first), (0, first)]
    assert pulls[12][0] == result.arm == 0
    assert len(pulls) == 13


def test_without_the_pulls_for_a_comparison_the_highest_champion_is_chosen():
    means = [0.9, 0.1, 0.1, 0.95]
    method, budget = Tournament(capacity=2.0, form="log log"), 8
    pulls, result = recorded(means, budget, method)
    assert sum(count for _, count in pulls) == budget
    assert result.arm in (0, 3)
