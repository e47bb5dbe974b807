"""Event questions: that answers are right, and that ambiguous ones are."""

import random

import pytest
import torch

from tokenry.core.errors import InputError
from tokenry.tasks.worlds.event_questions import EOS, FIRST, PAD, EventQuestions, batch

WORLD = EventQuestions()


def test_answers_are_the_triggers_of_the_questions_colour():
    chance, sides = random.Random(0), {}
    for _ in range(800):
        question = WORLD.draw(chance)
        asked, *events = question.source
        (colour,) = WORLD.colours_of(asked)
        assert 1 <= len(question.answers) <= 3
        assert sorted([*question.answers, *question.others]) == sorted(events)
        assert len({asked, *events}) == WORLD.events + 1
        assert list(question.answers) == [t for t in events if t in question.answers]
        for trigger in events:
            colours = WORLD.colours_of(trigger)
            right = trigger in question.answers
            if len(colours) == 1:
                assert right == (colours[0] == colour)
            else:
                assert not right or colour in colours
                if colour in colours:
                    sides.setdefault(trigger, set()).add(right)
    # an ambiguous trigger is now an answer and now not
    assert all(both == {True, False} for both in sides.values())
    assert len(sides) == 10


def test_a_seed_makes_the_colours():
    triggers = range(FIRST, WORLD.vocabulary)
    again = EventQuestions()
    assert all(again.colours_of(t) == WORLD.colours_of(t) for t in triggers)
    other = EventQuestions(seed=1)
    assert any(other.colours_of(t) != WORLD.colours_of(t) for t in triggers)


def test_a_batch_ends_every_answer():
    questions = [WORLD.draw(random.Random(seed)) for seed in range(8)]
    source, target, mask = batch(questions)
    assert source.shape == (8, 1 + WORLD.events)
    for row, kept, question in zip(target.tolist(), mask, questions, strict=True):
        assert row[: len(question.answers) + 1] == [*question.answers, EOS]
        assert int(kept.sum()) == len(question.answers) + 1
    assert torch.equal(target == PAD, ~mask)


def test_impossible_passages_are_refused():
    with pytest.raises(InputError, match="not 3"):
        EventQuestions(triggers=3)
    with pytest.raises(InputError, match="1 colours"):
        EventQuestions(colours=1)
