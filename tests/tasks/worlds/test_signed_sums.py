from itertools import combinations, permutations, product

import pytest
import torch

from tokenry.core.errors import InputError
from tokenry.tasks.worlds.signed_sums import part_of, smallest_sum, step_targets, traces


def by_subsets(digits):
    """Negating a subset changes the total by twice its sum: all subsets, all sums."""
    total = sum(digits)
    subsets = (rest for n in range(len(digits) + 1) for rest in combinations(digits, n))
    return min(total - 2 * sum(rest) for rest in subsets if total >= 2 * sum(rest))


def shares(targets, largest, length):
    bound = largest * length
    return [{n - bound: float(row[n]) for n in row.nonzero()[:, 0].tolist()} for row in targets]


def test_the_worked_distribution_over_all_signs():
    one, two, three = shares(step_targets((3, 1, 4, 2)), 9, 4)
    assert one == {-3: 0.5, 3: 0.5}
    assert two == {-4: 0.25, -2: 0.25, 2: 0.25, 4: 0.25}
    assert three == {0: 0.25} | dict.fromkeys((-8, -6, -2, 2, 6, 8), 0.125)
    assert smallest_sum((3, 1, 4, 2)) == 0


def test_the_worked_distribution_of_the_four_best():
    one, _, three = shares(step_targets((5, 2, 7, 1), 4), 9, 4)
    assert one == {-5: 0.75, 5: 0.25}
    assert three == {0: 0.5, 4: 0.5}
    assert smallest_sum((5, 2, 7, 1)) == 1
    assert [trace[-1] for trace in traces((5, 2, 7, 1), 4)] == [1, 1, 3, 5]
    assert [trace[-1] for trace in traces((5, 2, 7, 1), 4, "absolute")] == [1, 1, -1, -1]


def test_the_best_trace_ends_in_the_answer_for_all_digits():
    for digits in product(range(1, 10), repeat=3):
        assert smallest_sum(digits) == by_subsets(digits) == traces(digits, 1)[0][-1]
        assert abs(traces(digits, 1, "absolute")[0][-1]) == by_subsets(digits)


def test_targets_are_distributions_and_one_trace_is_one_hot():
    for budget in (None, 1, 3, 32):
        targets = step_targets((9, 9, 1, 9, 9), budget)
        assert targets.shape == (4, 91)
        torch.testing.assert_close(targets.sum(-1), torch.ones(4))
        assert budget != 1 or set(targets.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(step_targets((1, 2, 3), 8), step_targets((1, 2, 3)))


def test_permutations_stay_on_one_side_and_a_fifth_is_held_out():
    for digits in ((1, 2, 3, 4), (9, 9, 5, 1), (7, 7, 7, 2)):
        assert len({part_of(one) for one in permutations(digits)}) == 1
    sides = [part_of(digits) for digits in combinations(range(1, 30), 4)]
    assert sides.count("test") / len(sides) == pytest.approx(0.2, abs=0.01)


def test_budgets_and_digits_out_of_range_are_refused():
    for budget in (0, 17):
        with pytest.raises(InputError, match="budget"):
            traces((1, 2, 3, 4), budget)
    with pytest.raises(InputError, match="largest, 9"):
        step_targets((1, 12))
