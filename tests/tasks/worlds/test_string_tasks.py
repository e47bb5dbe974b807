import random

import pytest

from tokenry.tasks.worlds.string_tasks import (
    END,
    FREQUENCIES,
    TAIL,
    example,
    tokenizer,
    transformed,
)


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("copy", "afcb"), ("reverse", "bcfa"), ("upper", "AFCB"), ("shift", "badc"),
        ("first", "aaaa"), ("last", "bbbb"),
    ],
)  # fmt: skip
def test_what_a_task_makes_of_the_letters(task, expected):
    assert "".join(transformed(task, list("afcb"))) == expected


def test_the_tail_is_what_is_at_most_three_percent():
    assert sum(FREQUENCIES.values()) == 100
    assert tuple(task for task, share in FREQUENCIES.items() if share <= 3) == TAIL


def test_cues_are_right_as_often_as_they_say():
    draw = random.Random(0)
    rows = [example("shift", draw) for _ in range(6000)]
    words = [row["prompt"].split() for row in rows]
    task = sum(w[0] == "shift" for w in words) / len(rows)
    wanted = [row["markers"]["length"] for row in rows]
    size = sum(w[1] == length for w, length in zip(words, wanted, strict=True)) / len(rows)
    assert task == pytest.approx(0.6 + 0.4 / 6, abs=0.02)
    assert size == pytest.approx(0.75 + 0.25 / 2, abs=0.02)
    lengths = {row["markers"]["length"]: len(row["chosen"].split()) for row in rows}
    assert lengths == {"short": 2, "long": 4}


def test_prompts_markers_and_answers_are_all_words_of_the_tokenizer():
    encode, draw = tokenizer(), random.Random(1)
    for task in FREQUENCIES:
        row = example(task, draw)
        for text in (row["prompt"], row["chosen"], f"[length: short | task: {task}]"):
            assert 0 not in encode(text)["input_ids"]
    assert encode.eos_token == END
