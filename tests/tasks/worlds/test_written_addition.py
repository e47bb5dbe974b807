"""Written addition: the answers are the sums, and nothing else is judged to be right."""

import pytest
import torch

from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError
from tokenry.tasks.worlds.written_addition import END, SYMBOLS, WrittenAddition


def ids(text):
    return [SYMBOLS.index(symbol) for symbol in text]


def judged(prompt, answer):
    row, padding = torch.tensor([ids(prompt + answer) + [0] * 3]), [False] * 3
    target = torch.tensor([[False] * len(prompt) + [True] * len(answer) + padding])
    attention = torch.tensor([[True] * (len(prompt) + len(answer)) + padding])
    return bool(WrittenAddition().correct(TokenBatch(row, attention, target)))


@pytest.mark.parametrize(
    ("prompt", "worked", "at_once"),
    [
        ("47+38=", "15,08;085.", "085."),
        ("46+34=", "10,08;080.", "080."),
        ("45+44=", "09,08;089.", "089."),
        ("99+99=", "18,19;198.", "198."),
    ],
)
def test_answers_read_as_they_should(prompt, worked, at_once):
    world, prompts = WrittenAddition(), torch.tensor([ids(prompt)] * 2)
    answers, lengths = world.answers(prompts, torch.tensor([True, False]))
    assert world.text(answers[0]) == worked
    assert world.text(answers[1, : lengths[1]]) == at_once
    assert lengths.tolist() == [world.longest, 4]
    assert (answers[1, lengths[1] :] == END).all()


def test_prompts_are_two_numbers_of_any_digits():
    prompts = WrittenAddition().prompts(400, torch.Generator().manual_seed(0))
    for column in (0, 1, 3, 4):
        assert sorted(set(prompts[:, column].tolist())) == list(range(10))
    assert (prompts[:, 0] == prompts[:, 3]).float().mean() < 0.3  # of 400 with p = 0.1
    assert WrittenAddition().text(prompts[0]).endswith("=")


@pytest.mark.parametrize("digits", [1, 2, 3])
def test_all_sums_are_those_of_integers_and_given_answers_are_right(digits):
    world, generator = WrittenAddition(digits), torch.Generator().manual_seed(0)
    batch = world.given(generator, 200)
    for row, total in zip(batch.ids.tolist(), world.sums(batch.ids).tolist(), strict=True):
        first, second = (
            int("".join(map(str, part)))
            for part in (row[:digits], row[digits + 1 : 2 * digits + 1])
        )
        assert int("".join(map(str, total))) == first + second
    assert world.correct(batch).all()
    lengths = batch.target.sum(-1)
    assert set(lengths.tolist()) == {digits + 2, world.longest}
    assert 0.3 < (lengths == world.longest).float().mean() < 0.7  # of 200 with p = 0.5


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("085.", True),
        ("15,08;085.", True),
        ("99;085.", True),  # the working is not judged
        ("086.", False),
        ("085", False),
        ("85.", False),
        ("0085.", False),
        ("15,08;86.", False),
        ("1085.", False),
        (".", False),
        ("085;.", False),
    ],
)
def test_only_a_whole_answer_that_ended_counts(answer, right):
    assert judged("47+38=", answer) is right


def test_settings_are_checked():
    with pytest.raises(InputError, match="digits"):
        WrittenAddition(0)
    with pytest.raises(InputError, match="worked"):
        WrittenAddition(worked=1.5)


def test_hinted_prompts_say_the_sum_before_the_answer():
    """Of a fifth of 2,000 given rows; the others are what they were, and nothing else is judged."""
    world = WrittenAddition(hinted=0.2)
    assert world.context == WrittenAddition().context + 4 == 6 + 10 + 1 + 4
    prompts = world.prompts(3, torch.Generator().manual_seed(0))
    hints = world.hints(prompts)
    assert torch.equal(hints[:, :3], world.sums(prompts))
    assert [world.text(row)[-1] for row in hints] == ["="] * 3
    batch = world.given(torch.Generator().manual_seed(1), 2000)
    first = batch.target.int().argmax(-1)
    told = first == world.asked + 4
    assert ((first == world.asked) | told).all()
    assert 300 <= int(told.sum()) <= 500
    for rows in (told, ~told):
        asked, answers = batch.ids[rows, : world.asked], batch.select(rows)
        if bool(rows[told].any()):
            assert torch.equal(batch.ids[rows, world.asked : world.asked + 4], world.hints(asked))
        ends = answers.ids[torch.arange(len(asked)), answers.lengths - 1]
        assert (ends == END).all()
