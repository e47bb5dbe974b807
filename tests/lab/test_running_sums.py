"""Right and wrong solutions, pairs of them, and critical tokens of wrong ones."""

import pytest

from tokenry.lab.running_sums import SumsBench
from tokenry.learn.preference.dpo import DPO

SIZE = {"seed": 100, "terms": 2, "least": 50, "problems": 40}
SIZE |= {"tune_steps": 2, "steps": 2, "batch_size": 4, "samples": 4}


@pytest.fixture(scope="module")
def bench():
    return SumsBench(**SIZE)


def test_the_reference_is_good_enough(bench):
    assert bench.accuracy(bench.reference, 300, 5) > 0.4


def test_solutions_are_judged_and_numbered_by_their_problem(bench):
    wrong, right = bench._drawn[0]
    for kind, expected in ((wrong, False), (right, True)):
        for paths in kind.values():
            assert len({tuple(prompt) for prompt, _ in paths}) == 1
            assert all(bench.task.is_correct(*path) == expected for path in paths)
    assert sum(len(paths) for kind in (wrong, right) for paths in kind.values()) == 320


def test_a_pair_is_a_right_solution_over_the_most_frequent_wrong_answer(bench):
    wrong, right = bench._drawn[0]
    both = [number for number in right if number in wrong]
    assert len(bench.pairs) == len(both) > 0
    for number, row in zip(both, bench.pairs, strict=True):
        assert (row["prompt_ids"], row["chosen_ids"]) == right[number][0]
        answers = [bench.task.answer(ids) for _, ids in wrong[number]]
        given = bench.task.answer(row["rejected_ids"])
        assert answers.count(given) == max(map(answers.count, answers))


def test_behind_a_critical_token_no_rollout_is_right(bench):
    critical = bench.critical_tokens(6)
    assert critical
    for path in critical:
        assert not bench.task.is_correct(*path.solution)
        assert path.rollouts[path.place] == 0
        assert len(path.scores) == len(path.rollouts) == len(path.solution[1])
        assert 0 <= path.kept <= 1
        assert path.banned in (0, 0.25, 0.5, 0.75, 1)
        assert all(0 <= score <= 1 for score in path.scores)


def test_what_is_analysed_does_not_depend_on_what_was_used_before(bench):
    one, two = (SumsBench(**SIZE) for _ in range(2))
    one.train(DPO(0.1), 1e-4)
    assert one.pairs == bench.pairs
    assert one.critical_tokens(3) == two.critical_tokens(3)
