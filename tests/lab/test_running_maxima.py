"""Solutions by question, targets before each token, values behind each."""

import pytest
import torch

from tokenry.lab.running_maxima import MaximaBench
from tokenry.tasks.worlds.running_maxima import LENGTH, is_correct


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENRY_HOME", str(tmp_path))
    small = {"trained": 4, "copies": 3, "tested": 5, "test_copies": 8}
    return MaximaBench(2, fit_steps=60, steps=80, **small)


def test_solutions_stay_with_their_questions(bench):
    training = bench.training
    assert len(training.right) == 12
    for number, (solutions, right) in enumerate(training.by_question()):
        digits = bench.digits[number]
        assert len(solutions) == 3
        assert right == [float(is_correct(digits, ids)) for ids in solutions]
        assert [ids[:9:2] for ids in training.prompts[3 * number : 3 * number + 3]] == [digits] * 3
    assert len(bench.test.right) == 40


def test_a_value_model_learns_the_targets_of_what_stands_before_each_token(bench):
    """Before a digit stands a delimiter: worth 1; before a delimiter a digit: worth 0."""
    targets = [[1.0, 0.0] * (LENGTH // 2) for _ in bench.training.right]
    values = torch.cat(bench.judged(bench.value_model(targets)))
    assert values.shape == (40, LENGTH)
    behind_digits, behind_delimiters = values[:, ::2].mean(), values[:, 1:-1:2].mean()
    assert behind_digits < 0.25
    assert behind_delimiters > 0.75


def test_judged_solutions_are_parted_by_their_outcome(bench):
    judge = bench.value_model([[0.0] * LENGTH for _ in bench.training.right])
    right, wrong = bench.judged(judge)
    assert len(right) == sum(bench.test.right)
    assert len(right) + len(wrong) == 40
    assert 0 <= bench.searched(judge, 2) <= 1
