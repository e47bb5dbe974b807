"""Running sums: the solutions are right, and judging looks at the answer alone."""

import torch

from tokenry.tasks.worlds.running_sums import COLON, END, RunningSums


def test_solutions_add_up_and_are_judged_right():
    task = RunningSums(terms=4)
    prompts = task.problems(50, torch.Generator().manual_seed(0))
    solutions = task.solutions(prompts)
    assert solutions.shape == (50, task.length)
    assert (prompts[:, -1] == COLON).all()
    for prompt, solution in zip(prompts.tolist(), solutions.tolist(), strict=True):
        steps = task.text(solution).rstrip(".")
        left, total = steps[0], int(steps[0])
        for place in range(1, 4):
            digit = prompt[place]
            total = (total + digit) % 10
            left += f"+{digit}={total}"
        assert steps == left
        assert task.is_correct(prompt, solution)
        assert task.answer(solution) == sum(prompt[:4]) % 10


def test_only_the_number_before_the_end_counts():
    task = RunningSums(terms=3)
    prompt = [3, 8, 5, COLON]
    assert task.text(prompt) == "385:"
    assert task.is_correct(prompt, [9, 6, END])
    assert not task.is_correct(prompt, [3, 5, END])
    assert not task.is_correct(prompt, [9, 6])
    assert not task.is_correct(prompt, [END])
    assert task.answer([9, COLON, END]) is None
    assert task.answer([9, 6]) is None
