"""The format of tags, each once and in order."""

import pytest

from tokenry.core.errors import InputError
from tokenry.learn.rewards.tags import Tags

RIGHT = "<think>a\nb</think>\n<answer>c</answer>"


def tags(text, **settings):
    return Tags(**settings)(["x"], [text])[0]


@pytest.mark.parametrize(
    ("text", "whole", "end"),
    [
        (RIGHT, 1.0, 1.0),
        (f"\n{RIGHT} ", 1.0, 1.0),
        ("<think></think><answer></answer>", 1.0, 1.0),
        (f"So: {RIGHT}", 0.0, 1.0),
        (f"{RIGHT} So.", 0.0, 0.0),
        (f"{RIGHT}{RIGHT}", 0.0, 0.0),
        ("<think>a</think> or <answer>c</answer>", 0.0, 0.0),
        ("<answer>c</answer><think>a</think>", 0.0, 0.0),
        ("<think>a<think>b</think><answer>c</answer>", 0.0, 0.0),
        ("<think>a</think><answer>c", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_parts_stand_in_order_and_once(text, whole, end):
    assert tags(text) == whole
    assert tags(text, end=True) == end


def test_names_are_ones_own():
    assert tags("<a+>1</a+>", names=("a+",)) == 1.0
    assert tags("<aa>1</aa>", names=("a+",)) == 0.0
    for wrong in ((), ("a", "a")):
        with pytest.raises(InputError, match="tags need names"):
            Tags(names=wrong)
