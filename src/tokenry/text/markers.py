"""Markers: what a text is like, written in front of it, and the rates at which it is left out.

    schema = MarkerSchema({"task": ("copy", "sort"), "length_words": int})
    schema.render({"length_words": 12, "task": "sort"})
        "[task: sort | length_words: 12]\\n"
    schema.parse("[task: sort | length_words: 12]\\nThe text")
        ({"task": "sort", "length_words": 12}, "The text")

A marker is a category with one value. A block of markers is ordinary text: no token is added to a
vocabulary. Categories come in the schema's order, so that equal markers are equal texts.

Training examples carry the block before the completion, always, and behind the prompt, with
dropout: the model learns both to obey given markers and to infer missing ones.

Source: Treasure Hunt: Real-time Targeting of the Long Tail using Training-Time Markers
(arXiv 2506.14702); the wording of the template is ours.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from tokenry.core.checks import within
from tokenry.core.errors import InputError, UnknownNameError

Value = str | int | float
Markers = Mapping[str, Value]

OPENING, CLOSING, BETWEEN = "[", "]\n", " | "
RESERVED = re.compile(r"[\[\]|\n]")
WHOLE = re.compile(r"-?\d{1,1000}")
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d{1,3})?")
SENTENCE_END = re.compile(r"[.!?]+(?=\s|$)")
LENGTH_BUCKETS = (("concise", 50), ("medium", 200), ("long", None))  # tokens, upper ends


@dataclass(frozen=True)
class MarkerSchema:
    """Which categories there are and what values each may have.

    categories: name -> the allowed values, or `str`, `int` or `float` for any text, whole number or
    number. Names and values are single lines without "[", "]" and "|"; no two values of a category
    may be written alike (1 and "1"), since a block that was read could not tell them apart.
    """

    categories: Mapping[str, tuple[Value, ...] | type]

    def __post_init__(self) -> None:
        for name, allowed in self.categories.items():
            if isinstance(allowed, type) and allowed not in (str, int, float):
                raise InputError(
                    f"marker {name} is of type {allowed.__name__}; it must be str, int or float, "
                    "or a tuple of the allowed values"
                )
            values = () if isinstance(allowed, type) else allowed
            for text in (name, *values):
                _check_text(str(text))
            written: dict[str, Value] = {}
            for value in values:
                other = written.setdefault(str(value), value)
                if (type(other), other) != (type(value), value):
                    raise InputError(
                        f"the values {other!r} and {value!r} of marker {name} are written alike: "
                        "keep one of them"
                    )
            if ":" in name:
                raise InputError(f"a marker's name must not contain a colon, got {name!r}")

    @classmethod
    def of_data(cls, markers: Iterable[Markers]) -> MarkerSchema:
        """The categories and values that occur, sorted; a category of numbers allows all.

        Raises InputError for values that are written alike.
        """
        found: dict[str, dict[tuple[type, Value], Value]] = {}
        for one in markers:
            for name, value in one.items():  # 1, 1.0 and True are equal, but not the same
                found.setdefault(name, {})[type(value), value] = value
        return cls(
            {name: _category(list(values.values())) for name, values in sorted(found.items())}
        )

    def render(self, markers: Markers, *, opened: bool = False) -> str:
        """The block of these markers; "" when there are none. opened: without its end, so that
        further markers can follow.

        Raises UnknownNameError for a category that the schema lacks, InputError for such a value.
        """
        for name in markers:
            if name not in self.categories:
                raise UnknownNameError("marker", name, self.categories)
        entries = [
            f"{name}: {self._checked(name, markers[name])}"
            for name in self.categories
            if name in markers
        ]
        end = "" if opened else CLOSING
        return OPENING + BETWEEN.join(entries) + end if entries else ""

    def parse(self, text: str) -> tuple[dict[str, Value], str]:
        """The markers of the block at the start of a text, and what follows it.

        Robust to what a model may write: values that the schema does not allow are left out, and a
        text whose first line is no block of known categories is returned as it is.
        """
        first, newline, rest = text.partition("\n")
        first = first.strip()
        if not (newline and first.startswith("[") and first.endswith("]")):
            return {}, text
        entries = [entry.partition(":") for entry in first[1:-1].split("|")]
        written = {name.strip(): value.strip() for name, _, value in entries}
        known = [name for name in self.categories if name in written]
        if not known:
            return {}, text
        values = {name: self._read(name, written[name]) for name in known}
        return {name: value for name, value in values.items() if value is not None}, rest

    def _checked(self, name: str, value: Value) -> Value:
        allowed = self.categories[name]
        if isinstance(allowed, type):
            kinds = (int, float) if allowed is float else (allowed,)
            fits = isinstance(value, kinds) and not isinstance(value, bool)
            fits = fits and not (isinstance(value, float) and not math.isfinite(value))
            wanted = f"a value of type {allowed.__name__}"
        else:
            fits = any(type(known) is type(value) and known == value for known in allowed)
            wanted = f"one of {', '.join(map(str, allowed))}"
        if not fits:
            raise InputError(f"marker {name} must be {wanted}, got {value!r}")
        _check_text(str(value))
        return value

    def _read(self, name: str, value: str) -> Value | None:
        allowed = self.categories[name]
        if allowed is int:
            return int(value) if WHOLE.fullmatch(value) else None
        number = float(value) if NUMBER.fullmatch(value) else None
        if allowed is float:
            return number if number is not None and math.isfinite(number) else None
        if isinstance(allowed, type):
            return value or None
        same = (known for known in allowed if str(known) == value)
        equal = (known for known in allowed if isinstance(known, float) and known == number)
        return next(same, next(equal, None))


@dataclass(frozen=True)
class MarkerDropout:
    """Which of an example's markers its prompt shows.

    p_dataset: probability that an example shows none, in [0, 1]; 0.5 in the paper.
    p_sample: otherwise, probability of each marker to be left out, in [0, 1]; 0.5 in the paper.
    seed: whole, in (-inf, inf). The draw depends on it and the example's number alone, not on the
        order of calls.
    """

    p_dataset: float = 0.5
    p_sample: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        within(self, "[0, 1]", "p_dataset", "p_sample")
        within(self, "(-inf, inf)", "seed", integer=True)

    def __call__(self, markers: Markers, example: int) -> dict[str, Value]:
        draw = random.Random(f"{self.seed}:{example}")
        if draw.random() < self.p_dataset:
            return {}
        return {name: value for name, value in markers.items() if draw.random() >= self.p_sample}


class MarkedExample(NamedTuple):
    """Token ids of prompt, prompt markers, completion markers and completion, and which of them
    are predicted: the last two."""

    ids: list[int]
    target: list[bool]


def build_example(
    prompt: list[int], shown: list[int], block: list[int], completion: list[int]
) -> MarkedExample:
    """Prompt and its markers are read; the completion's markers and the completion are learned."""
    read, learned = [*prompt, *shown], [*block, *completion]
    return MarkedExample(read + learned, [False] * len(read) + [True] * len(learned))


def length_markers(completion: str, tokens: int) -> dict[str, Value]:
    """Markers that a text has by itself: its length in tokens and sentences, and a bucket of it.

    tokens: of the completion alone, without end token, by the model's own tokenizer.
    """
    bucket = next(name for name, upper in LENGTH_BUCKETS if upper is None or tokens <= upper)
    ends = len(SENTENCE_END.findall(completion.strip()))
    tail = SENTENCE_END.split(completion.strip())[-1].strip()
    return {
        "length_bucket": bucket,
        "length_tokens": tokens,
        "length_sentences": ends + bool(tail),
    }


def _category(values: list[Value]) -> tuple[Value, ...] | type:
    kinds = {type(value) for value in values}  # a bool is not a number here
    if kinds <= {int, float}:
        return float if float in kinds else int
    return tuple(sorted(values, key=str))


def _check_text(text: str) -> None:
    if RESERVED.search(text) or text != text.strip() or not text:
        raise InputError(
            'markers are single lines without "[", "]" and "|", which enclose them, and without '
            f"white space at their ends; got {text!r}"
        )
