"""Answers to prompts of three kinds: what they are worth."""

import torch

from tokenry.tasks.worlds import answers as world
from tokenry.tasks.worlds.answers import END, LONGEST, POLITE, WORDS


def test_rewards_and_utility_of_answers_written_down():
    asking = torch.tensor([[0, 3, 4, 5], [1, 3, 4, 5], [2, 6, 7, 8]])
    given = torch.tensor([[3, 9, 4, END, 3, 3, 3, 3], [END] + [5] * 7, [POLITE] * 8])
    batch = world.answered(asking, given)
    assert batch.target.sum(-1).tolist() == [4, 1, 8]  # up to the end, which counts
    expected = torch.tensor([[5 / 8, 2 / 3, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    torch.testing.assert_close(world.rewards(batch), expected)
    utility = torch.tensor([0.8 * 5 / 8 + 0.1 * 2 / 3, 0.1, 0.8])
    torch.testing.assert_close(world.utility(batch), utility)


def test_prompts_have_a_kind_and_three_different_words():
    asking = world.prompts(500, torch.Generator().manual_seed(0))
    assert set(asking[:, 0].tolist()) == {0, 1, 2}
    assert asking[:, 1:].min() == WORDS.start
    assert asking[:, 1:].max() == WORDS.stop - 1
    assert all(len(set(row)) == 3 for row in asking[:, 1:].tolist())


def test_habits_know_their_kind_a_little():
    """Each reward is highest, on average, where the prompt asks for it."""
    batch = world.habits(torch.Generator().manual_seed(0), count=6000)
    assert batch.shape == (6000, 4 + LONGEST)
    worth, kinds = world.rewards(batch), batch.ids[:, 0]
    means = torch.stack([worth[kinds == kind].mean(0) for kind in range(3)])
    assert means.argmax(0).tolist() == [0, 1, 2]
