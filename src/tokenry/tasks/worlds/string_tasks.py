"""String tasks with a long tail: six transformations of 4 letters, from 50% of the data to 1%.

    reverse short a f c b =      answer   b c

A prompt names its task by a cue that is right 60% of the time only, and whether the answer is to be
short (2 letters) or long by a cue that is right 75% of the time: the rest must be inferred, or be
said by a marker.
"""

from __future__ import annotations

import random
from typing import Any

from tokenry.text.word_level import word_tokenizer

FREQUENCIES = {"copy": 50, "reverse": 25, "upper": 15, "shift": 6, "first": 3, "last": 1}
TAIL = ("first", "last")
LETTERS = "abcdef"
END = "<end>"
WORDS = (
    *(END, *LETTERS, *LETTERS.upper(), *FREQUENCIES),
    *("short", "long", *"=[]|:", "length", "task"),
)


def tokenizer() -> Any:
    """Every word and punctuation mark is one token; the end has id 0."""
    return word_tokenizer(WORDS, unknown=END, punctuation=True, eos_token=END)


def transformed(task: str, letters: list[str]) -> list[str]:
    """What a task makes of 4 letters."""
    return {
        "copy": letters,
        "reverse": letters[::-1],
        "upper": [letter.upper() for letter in letters],
        "shift": [LETTERS[(LETTERS.index(letter) + 1) % len(LETTERS)] for letter in letters],
        "first": letters[:1] * 4,
        "last": letters[-1:] * 4,
    }[task]


def example(task: str, draw: random.Random) -> dict[str, Any]:
    """A row: prompt, chosen, markers."""
    letters = [draw.choice(LETTERS) for _ in range(4)]
    whole = transformed(task, letters)
    length = draw.choice(["short", "long"])
    cue = task if draw.random() < 0.6 else draw.choice(list(FREQUENCIES))
    size = length if draw.random() < 0.75 else draw.choice(["short", "long"])
    return {
        "prompt": f"{cue} {size} {' '.join(letters)} =",
        "chosen": " ".join(whole if length == "long" else whole[:2]),
        "markers": {"length": length, "task": task},
    }
