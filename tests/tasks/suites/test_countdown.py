from fractions import Fraction
from itertools import permutations
from operator import add, mul, sub, truediv

import pytest

from tokenry.core.errors import InputError
from tokenry.tasks.suites.countdown import Countdown
from tokenry.tasks.task import Generate, Item


def reachable(values):
    """All values that expressions of all the numbers have, found by trying all of them."""
    if len(values) == 1:
        return {values[0]}
    found = set()
    for first, second, *rest in permutations(values):
        results = [operation(first, second) for operation in (add, sub, mul)]
        results += [truediv(first, second)] if second else []
        for result in results:
            found |= reachable((result, *rest))
    return found


def test_every_target_is_reachable_and_the_solution_reaches_it():
    made = Countdown()
    for item in made.items(25, 3):
        assert item.about["target"] in reachable(tuple(map(Fraction, item.about["numbers"])))
        assert made.score(item, item.solution) == {"right": 1, "allowed": 1, "well_formed": 1}
        assert 10 <= item.about["target"] <= 100
        assert all(1 <= number <= 20 for number in item.about["numbers"])
        assert f"Make {item.about['target']} with" in item.request.prompt


@pytest.mark.parametrize("count", [2, 4, 6])
@pytest.mark.parametrize("use", ["exactly", "at_most"])
def test_solutions_are_right_at_every_difficulty(count, use):
    made = Countdown(count, 1, 50, 0, 999, use)
    for item in made.items(40, 1):
        assert len(item.about["numbers"]) == count
        assert made.score(item, item.solution)["right"] == 1.0


def test_another_way_to_the_target_is_right_and_near_misses_are_not():
    made, item = Countdown(), Item(Generate("x"), None, {"numbers": [3, 3, 8, 8], "target": 24})
    scores = {
        "8 / (3 - 8 / 3)": (1, 1, 1),
        " 8/(3-8/3)\n": (1, 1, 1),
        "3 * 8 * 3 - 8": (0, 1, 1),  # the right numbers, another value
        "3 * 8": (0, 0, 1),  # the right value without all numbers
        "3 * 8 + 8 - 8 * 3 / 3": (0, 0, 1),  # a number used too often
        "24": (0, 0, 1),
        "8 / (3 - 8 / 3) = 24": (0, 0, 0),
        "24 = 8 / (3 - 8 / 3)": (0, 0, 0),
        "The answer is 8 / (3 - 8 / 3)": (0, 0, 0),
        "8 / (3 - 8 / 3": (0, 0, 0),
        "-8 / (8 / 3 - 3)": (0, 0, 0),
        "8 / (3 - 3) * 8": (0, 1, 1),
        "8 / (3 - 3) + 8 / 8 * 8": (0, 0, 1),
        "(8 + 8) / (3 - 3)": (0, 1, 1),  # no value at all
        "": (0, 0, 0),
    }
    for text, wanted in scores.items():
        assert tuple(made.score(item, text).values()) == wanted, text
    loose = Countdown(use="at_most")
    assert loose.score(item, "3 * 8")["right"] == 1.0
    assert loose.score(item, "3 * 8 * 3 / 3")["right"] == 0.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"count": 1},
        {"lowest": 0},
        {"highest": 0},
        {"target_lowest": -1},
        {"target_highest": 9},
        {"use": "once"},
    ],
)
def test_settings_are_checked(wrong):
    with pytest.raises(InputError):
        Countdown(**wrong)


def test_targets_out_of_reach_are_said_so():
    with pytest.raises(InputError, match="made no target from 1000 to 1001"):
        Countdown(2, 1, 9, 1000, 1001).items(1, 0)
