"""Solutions by question, targets before each token, values behind each."""

import pytest
import torch

from tokenry.lab.running_maxima import MaximaBench
from tokenry.tasks.worlds.running_maxima import LENGTH, is_correct


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENRY_HOME", str(tmp_path))
    small = {"trained": 4, "copies": 3, "tested": 5, "test_copies": 8}
    return MaximaBench(2, fit_steps=2, steps=30, **small)


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
    """Targets that depend on the position alone: the value behind token t is that before t + 1."""
    targets = [[n / 10 for n in range(LENGTH)] for _ in bench.training.right]
    judge = bench.value_model(targets)
    values = torch.cat(bench.judged(judge))
    assert values.shape == (40, LENGTH)
    expected = torch.tensor(targets[0][1:])
    assert (values[:, :-1].mean(0) - expected).abs().max() < 0.15


def test_judged_solutions_are_parted_by_their_outcome(bench):
    judge = bench.value_model([[0.0] * LENGTH for _ in bench.training.right])
    right, wrong = bench.judged(judge)
    assert len(right) == sum(bench.test.right)
    assert len(right) + len(wrong) == 40
    assert 0 <= bench.searched(judge, 2) <= 1
