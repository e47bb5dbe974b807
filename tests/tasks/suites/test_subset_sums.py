from itertools import combinations

import pytest

from tokenry.core.errors import InputError
from tokenry.tasks.suites.subset_sums import SubsetSums
from tokenry.tasks.task import Generate, Item


def by_subsets(digits):
    """Negating a subset changes the total by twice its sum: all subsets, all sums."""
    total = sum(digits)
    subsets = (rest for n in range(len(digits) + 1) for rest in combinations(digits, n))
    return min(total - 2 * sum(rest) for rest in subsets if total >= 2 * sum(rest))


@pytest.mark.parametrize("form", ["sum", "trace"])
@pytest.mark.parametrize("length", [2, 4, 7])
def test_solutions_are_right_at_every_length(form, length):
    made = SubsetSums(length, form=form)
    for item in made.items(20, 1):
        assert len(item.about["digits"]) == length
        assert " ".join(map(str, item.about["digits"])) in item.request.prompt
        assert made.score(item, f" {item.solution}\n") == {"right": 1.0, "valid": 1.0}
        assert int(item.solution.split()[-1]) == by_subsets(item.about["digits"])


@pytest.mark.parametrize(
    ("form", "scores"),
    [
        (
            "sum",
            {"1": (1, 1), "3": (0, 1), "-1": (0, 1), "2": (0, 0), "0": (0, 0), "+1": (0, 0)}
            | dict.fromkeys(("01", "1.0", "1 1", "= 1", "the sum is 1", "", "-", "one"), (0, 0)),
        ),
        (
            "trace",
            {"5 7 0 1": (1, 1), "-5 -7 0 1": (1, 1), "-5 -3 4 5": (0, 1), "5 7 0 -1": (0, 1)}
            | dict.fromkeys(("1", "5 7 0", "5 7 0 1 1", "5 7  0 1", "5 3 0 1", "7 5 0 1"), (0, 0))
            | dict.fromkeys(("+5 +7 0 1", "5, 7, 0, 1", "-0 7 0 1", "9" * 9000), (0, 0)),
        ),
    ],
)
def test_near_misses_and_malformed_answers(form, scores):
    made, item = SubsetSums(form=form), Item(Generate("x"), None, {"digits": [5, 2, 7, 1]})
    for text, (right, valid) in scores.items():
        assert made.score(item, text) == {"right": right, "valid": valid}, text


def test_no_digits_are_for_training_and_for_testing():
    drawn = {
        part: {tuple(sorted(item.about["digits"])) for item in SubsetSums(part=part).items(300, 0)}
        for part in ("train", "test")
    }
    assert not drawn["train"] & drawn["test"]


@pytest.mark.parametrize(
    "wrong", [{"length": 1}, {"length": 17}, {"largest": 0}, {"form": "signs"}, {"part": "dev"}]
)
def test_settings_are_checked(wrong):
    with pytest.raises(InputError):
        SubsetSums(**wrong)
