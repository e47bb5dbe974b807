"""Left open: the posterior by hand, the answers' logits, and a reader better than its habit."""

import math

import pytest
import torch

from tokenry.tasks.worlds.left_open import answer_logits, log_odds, open_questions


def test_the_odds_multiply_over_the_examples_that_are_shown():
    shift = torch.tensor([[4, 4, 0], [0, 4, 4], [7, 7, 4]])
    shown = torch.tensor([[True, True, False], [True, False, False], [True, True, False]])
    right, wrong = 0.4 + 0.6 / 11, 0.6 / 11
    habit = math.log(1 / 9)
    expected = [2 * math.log(right / wrong) + habit, math.log(wrong / right) + habit, habit]
    assert log_odds(shift, shown).tolist() == pytest.approx(expected)


def test_the_answers_are_a_distribution_with_a_floor():
    probs = answer_logits(torch.tensor([0.25], dtype=torch.float64)).exp()[0]
    left = 1 - 11 * 0.002
    assert float(probs.sum()) == pytest.approx(1.0)
    assert float(probs[0]) == pytest.approx(0.002 + left * 0.75)
    assert float(probs[4]) == pytest.approx(0.002 + left * 0.25)
    assert float(probs[1]) == pytest.approx(0.002)


def test_examples_help_where_the_habit_misleads():
    questions = open_questions(4000, seed=1)
    assert set(questions.answer.tolist()) == {0, 4}
    assert abs(float((questions.answer == 4).double().mean()) - 0.5) < 0.03
    right = questions.with_examples.argmax(-1) == questions.answer
    habit = questions.without.argmax(-1) == questions.answer
    assert float(right.double().mean()) > float(habit.double().mean()) + 0.05
    noise = questions.without - answer_logits(torch.full((4000,), 0.1, dtype=torch.float64))
    assert float(noise.std()) == pytest.approx(0.3, rel=0.03)
    assert torch.equal(questions.with_examples, open_questions(4000, seed=1).with_examples)
