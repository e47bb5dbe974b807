import pytest
import torch

from tokenry.tasks.worlds.entity_typing import END, LABELS, EntityTyping, micro_f1, until_end

TASK = EntityTyping(seed=2)


def test_the_truth_satisfies_every_constraint():
    prompts, truth = TASK.draw(200, torch.Generator().manual_seed(0))
    assert prompts.shape == (200, 7)
    assert (prompts[:, :6] < 16).all()
    assert TASK.csr(truth).tolist() == [1.0] * 200
    texts = {TASK.text(answer) for answer in truth}
    assert texts == {f"{LABELS[n // 2]}, {LABELS[4 + n]}" for n in range(8)}


def test_each_constraint_is_a_third_of_the_rate():
    person, place, person_a = 16, 17, 20
    answers = [
        [person, person_a, END],
        [person_a, END],  # not closed upwards
        [person, 3, END],  # a symbol is no label
        [person, place, 18, 19, END],  # four labels
    ]
    assert TASK.csr(answers).tolist() == pytest.approx([1.0, 2 / 3, 2 / 3, 2 / 3])


def test_symbols_follow_the_types_table():
    prompts, truth = TASK.draw(20_000, torch.Generator().manual_seed(1))
    kinds = torch.tensor([answer[1] - 20 for answer in truth])
    counts = torch.bincount(prompts[kinds == 5, :6].flatten(), minlength=16).float()
    assert (counts / counts.sum() - TASK.table[5]).abs().max() < 0.02


def test_an_answer_stops_at_its_end():
    assert until_end([17, END, 20, END]) == [17, END]
    assert until_end([17, 18]) == [17, 18]


def test_micro_f1_counts_labels_over_all_answers():
    answers, truth = [[16, END], [17, 18, 19, END]], [[16, 20, END], [17, 22, END]]
    assert micro_f1(answers, truth) == pytest.approx(2 * 2 / (1 + 3 + 2 + 2))
    assert micro_f1([[END]], [[END]]) == 0.0
