"""Answers against the column `answer`: the same text, or the same number or expression.

    r_i = [ some gold answer of row i equals the answer of y_i ],  None where the row has no gold

The answer of a completion is what stands in its last <answer>...</answer>, or else all of it.
Equality is of texts up to case and white space (`ExactAnswer`), or of mathematics, as math-verify
decides it: 1/2 = 0.5 = \\frac{1}{2} (`NumericAnswer`, the extra `rewards`).
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenry.core.checks import within
from tokenry.core.errors import InputError
from tokenry.core.extras import require_extra
from tokenry.learn.rewards.base import Example, Texts, reward

ANSWER = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)
SECONDS = 5  # math-verify's own limit for one expression


def answer_text(completion: str) -> str:
    """What stands in the last <answer> of a completion, stripped; without one, all of it."""
    found = ANSWER.findall(completion)
    return (found[-1] if found else completion).strip()


def normalised(text: Any) -> str:
    """In lower case, with single spaces."""
    return " ".join(str(text).casefold().split())


def golds_of(gold: Any) -> list[Any]:
    """The answers that count as right: the members of a list, or the one."""
    return list(gold) if isinstance(gold, list | tuple) else [gold]


def _exact_examples() -> list[Example]:
    return [
        Example(
            ExactAnswer(),
            ["<answer>Lyon</answer>", "So <answer> PARIS\n</answer>", "paris"],
            {"answer": ["Paris", "Paris", ["Rome", "Paris"]]},
            better=[(0, 1), (0, 2)],
        )
    ]


@reward("exact_answer", examples=_exact_examples)
@dataclass(frozen=True)
class ExactAnswer:
    """1 for the same text up to case and white space, 0 for another. `answer`: a text, a number, or
    a list of all that are right."""

    def __call__(
        self, prompts: Texts, completions: Texts, answer: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        return [
            None
            if gold is None
            else float(normalised(answer_text(text)) in map(normalised, golds_of(gold)))
            for text, gold in zip(completions, answer, strict=True)
        ]


def _numeric_examples() -> list[Example]:
    completions = ["<answer>0.4</answer>", r"\boxed{\frac{1}{2}}", "It is 0.5."]
    return [Example(NumericAnswer(), completions, {"answer": ["1/2"] * 3}, [(0, 1), (0, 2)])]


@reward("numeric_answer", examples=_numeric_examples)
@dataclass(frozen=True)
class NumericAnswer:
    """1 for an equal number or expression, 0 for another or none that can be read.

    Args:
        digits: after the point, to which numbers are rounded before they are compared, whole, in
            [0, inf); default 6, math-verify's.

    Raises:
        InputError: a gold answer that cannot be read as mathematics, math-verify not installed.

    Source: math-verify, https://github.com/huggingface/Math-Verify.
    """

    digits: int = 6

    def __post_init__(self) -> None:
        within(self, "[0, inf)", "digits", integer=True)

    def __call__(
        self, prompts: Texts, completions: Texts, answer: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        require_extra("comparing numeric answers", "math_verify")
        return [
            None if gold is None else max(self._equal(text, one) for one in golds_of(gold))
            for text, gold in zip(completions, answer, strict=True)
        ]

    def _equal(self, completion: str, gold: Any) -> float:
        from math_verify import verify  # pyright: ignore[reportMissingImports]

        wanted = _expression(str(gold)) or _expression(f"${gold}$")
        if not wanted:
            raise InputError(f"the gold answer {gold!r} is neither number nor expression")
        given = _expression(answer_text(completion))
        if not given:
            return 0.0
        return float(verify(wanted, given, float_rounding=self.digits, timeout_seconds=_seconds()))


def _expression(text: str) -> Any:
    """What math-verify reads in a text, or an empty list."""
    from math_verify import parse  # pyright: ignore[reportMissingImports]

    return parse(text, parsing_timeout=_seconds())


def _seconds() -> int:
    """Its limit works by a signal, in a main thread; elsewhere it would fail, and 0 is none."""
    return SECONDS if threading.current_thread() is threading.main_thread() else 0
