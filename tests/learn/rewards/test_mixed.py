"""Mixed-R1: each row by its type."""

import pytest

from tokenry.core.errors import InputError, UnknownNameError
from tokenry.learn.rewards.mixed import ROUTES, MixedReward
from tokenry.learn.rewards.worker import signature_of

TAGGED = "<think>x</think><answer>{}</answer>"


def test_each_row_goes_to_the_reward_of_its_type():
    texts = [TAGGED.format("B"), "209", TAGGED.format("[1,1,3,3]"), "A"]
    types = ["matching", "chart", "iou", "matching"]
    golds = ["(b)", 200, [0, 0, 2, 2], "B"]
    given = MixedReward()(["x"] * 4, texts, type=types, answer=golds)
    assert given == pytest.approx([2.0, 1.0, 1 + 1 / 7, 0.0])  # the format is worth 1
    half = MixedReward(format_weight=0.5)(["x"] * 4, texts, type=types, answer=golds)
    assert half == pytest.approx([1.5, 1.0, 0.5 + 1 / 7, 0.0])
    alone = MixedReward()(["x"], texts[1:2], type=types[1:2], answer=golds[1:2])
    assert alone == given[1:2]  # whatever else is in the batch


def test_a_type_sees_its_own_rows_alone():
    seen = []

    def open_answer(prompts, completions, answer):
        seen.append((prompts, completions, answer))
        return [None, 0.5]

    mixed = MixedReward(ROUTES | {"open": open_answer})
    types = ["open", "chart", "open"]
    given = mixed(["p", "q", "r"], ["a", "5", "c"], type=types, answer=["g", 5, "h"])
    assert seen == [(["p", "r"], ["a", "c"], ["g", "h"])]
    assert given == [None, 1.0, 0.5]
    assert signature_of(mixed).required == ("prompts", "completions", "type", "answer")


def test_a_type_without_a_route_is_refused():
    with pytest.raises(UnknownNameError, match="unknown type of row 'open'"):
        MixedReward()(["x"], ["a"], type=["open"], answer=["a"])
    with pytest.raises(InputError, match="needs routes"):
        MixedReward({})
    with pytest.raises(InputError, match="format_weight is -1"):
        MixedReward(format_weight=-1)
