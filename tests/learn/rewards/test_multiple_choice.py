"""Options: all of them, or some for partial credit, and none that is wrong."""

import pytest

from tokenry.core.errors import InputError
from tokenry.learn.rewards.multiple_choice import MultipleChoice, multi_choice_reward, options_of


@pytest.mark.parametrize(
    ("predicted", "gold", "value"),
    [
        ("A", "ABC", 1 / 3),
        ("AB", "ABC", 2 / 3),
        ("ABC", "ABC", 1.0),
        ("AD", "ABC", 0.0),
        ("ABCD", "ABC", 0.0),
        ("", "ABC", 0.0),
        ("C", "C", 1.0),
    ],
)
def test_a_wrong_option_takes_everything(predicted, gold, value):
    assert multi_choice_reward(set(predicted), set(gold)) == pytest.approx(value)
    text = f"<answer>{', '.join(predicted)}</answer>"
    assert MultipleChoice()(["x"], [text], [",".join(gold)]) == pytest.approx([value])
    hard = MultipleChoice(partial=False)(["x"], [text], [list(gold)])
    assert hard == [float(value == 1)]


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("a, C", {"A", "C"}),
        ("(b)", {"B"}),
        ("B. a river", {"B"}),
        ("Option d", {"D"}),
        ("B: yes", {"B"}),
        ("Yes.", {"yes"}),
        ("a river", {"a river"}),
        ("", set()),
        ("A,,A", {"A"}),
    ],
)
def test_options_are_letters_however_they_are_written(text, options):
    assert options_of(text) == options


def test_yes_and_no_are_options_too():
    assert MultipleChoice(partial=False)(["x"] * 2, ["YES.", "no"], ["yes", "yes"]) == [1.0, 0.0]


def test_rows_without_a_gold_answer_have_no_reward():
    assert MultipleChoice()(["x"], ["A"], [None]) == [None]
    with pytest.raises(InputError, match="one right option"):
        multi_choice_reward({"A"}, set())
