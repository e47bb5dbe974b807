import pytest

from tokenry.core.errors import InputError
from tokenry.tasks.distinct import distinct_items, split
from tokenry.tasks.suites.arithmetic import Arithmetic
from tokenry.tasks.suites.lang_game import LangGame
from tokenry.tasks.task import Generate, Item

WORDS = ["bring", "thing", "sea", "tea"]


def draw(random):
    return Item(Generate(str(random.randrange(40))))


def test_every_question_of_a_small_space_is_drawn_once():
    prompts = [item.request.prompt for item in distinct_items(draw, 40, 0)]
    assert sorted(map(int, prompts)) == list(range(40))
    assert distinct_items(draw, 40, 0) == distinct_items(draw, 40, 0)
    assert distinct_items(draw, 0, 0) == []


def test_more_than_there_are_is_refused_with_what_there_is():
    with pytest.raises(InputError, match="41 distinct items were asked for and 40 were drawn"):
        distinct_items(draw, 41, 0)
    with pytest.raises(InputError, match="count is -1"):
        distinct_items(draw, -1, 0)


def test_parts_never_meet():
    train, test = split(Arithmetic(1, operations=("+",)), [80, 20])
    assert (len(train), len(test)) == (80, 20)
    assert len({item.request.prompt for item in [*train, *test]}) == 100
    with pytest.raises(InputError, match="twice"):
        split(LangGame(WORDS, ("ends",)), [300, 300])
    with pytest.raises(InputError, match="size"):
        split(Arithmetic(), [1, 0])
