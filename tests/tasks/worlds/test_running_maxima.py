import torch

from tokenry.tasks.worlds.running_maxima import (
    COMMA,
    END,
    EQUALS,
    LENGTH,
    STEP,
    is_correct,
    prompt,
    questions,
    solution,
)


def test_a_solution_without_slips_is_the_running_maximum():
    assert prompt([3, 5, 0, 7, 1]) == [3, COMMA, 5, COMMA, 0, COMMA, 7, COMMA, 1, EQUALS]
    ids = solution([3, 5, 0, 7, 1], 0.0, torch.Generator())
    assert ids == [5, STEP, 5, STEP, 7, STEP, 7, END]
    assert len(ids) == LENGTH
    assert is_correct([3, 5, 0, 7, 1], ids)
    assert not is_correct([3, 5, 0, 7, 1], [*ids[:-2], 6, END])
    assert not is_correct([3], [3])


def test_a_slip_is_a_random_digit_from_which_the_solution_goes_on():
    draw = torch.Generator().manual_seed(0)
    slipped = torch.tensor([solution([0, 0, 0, 0, 0], 0.2, draw) for _ in range(4000)])
    first, second = slipped[:, 0], slipped[:, 2]
    assert abs(float((first != 0).double().mean()) - 0.2 * 7 / 8) < 0.02
    assert abs(float((second == first).double().mean()) - (0.8 + 0.2 / 8)) < 0.02


def test_all_questions_occur_once():
    drawn = questions(torch.Generator().manual_seed(1))
    assert len(drawn) == len(set(map(tuple, drawn))) == 8**5
    assert drawn != questions(torch.Generator().manual_seed(2))
