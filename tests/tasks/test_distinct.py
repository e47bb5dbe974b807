import pytest

from tokenry.core.errors import InputError
from tokenry.tasks.distinct import HeldOut, distinct_items, split
from tokenry.tasks.suites.arithmetic import Arithmetic
from tokenry.tasks.suites.lang_game import LangGame
from tokenry.tasks.task import Generate, Item, Task, evaluate

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


class Graded(Task):
    """Of everything it has its own: an aggregate and a reward that are not the defaults."""

    primary = "right"

    def items(self, count, seed):
        return distinct_items(draw, count, seed)

    def score(self, item, answer):
        return {"right": float(item.request.prompt == answer)}

    def aggregate(self, scores):
        return {"right": 10 * max(score["right"] for score in scores)}

    def reward(self, item, answer):
        return 3 * self.score(item, answer)["right"]


class Counting(Graded):
    """Items that depend on how many there are."""

    def items(self, count, seed):
        return distinct_items(draw, 40, seed)[-count:]


def test_what_is_held_out_follows_what_was_trained_on():
    task, trained = HeldOut(Graded(), 30), Graded().items(30, 7)
    held = task.items(10, 7)
    assert held == Graded().items(40, 7)[30:]
    assert not {item.request.prompt for item in held} & {item.request.prompt for item in trained}
    assert task.reward(held[0], held[0].request.prompt) == 3
    report = evaluate(lambda prompt: prompt, task, 10, seed=7)
    assert (report.value, report.items) == (10, tuple(held))


@pytest.mark.parametrize("task", [Counting(), LangGame(WORDS, ("ends",))])
def test_what_is_not_apart_is_refused(task):
    with pytest.raises(InputError, match="first 20 are not apart"):
        HeldOut(task, 20).items(10, 0)
    with pytest.raises(InputError, match="after"):
        HeldOut(Graded(), 0)
