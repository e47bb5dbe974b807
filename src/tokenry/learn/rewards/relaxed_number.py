"""Numbers read off a chart: right within a tolerance.

    r = [ |a - g| <= tolerance |g| ]            exact where g = 0
    r = max(0, 1 - |a - g| / |g|)               soft

a and g are the numbers of the answer and of the gold answer, without thousands separators, currency
and percent signs; where the gold answer is no number, the texts must be the same.

Source: Mixed-R1: Unified Reward Perspective (arXiv 2505.24164). Reconstructed: the tolerance of 5 %
(the "relaxed accuracy" of chart questions) and the soft form.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenry.core.checks import within
from tokenry.learn.rewards.answers import answer_text, golds_of, normalised
from tokenry.learn.rewards.base import Example, Texts, reward

NUMBER = re.compile(r"[-+]?(\d{1,3}(,\d{3})+|\d+)?(\.\d+)?(e[-+]?\d+)?", re.IGNORECASE)


def number_of(text: Any) -> float | None:
    """The number that a text is: 1234 of "1,234", 45 of "45%"; None when it is none."""
    plain = str(text).strip().strip("$€£").removesuffix("%").strip()
    if not any(map(str.isdecimal, plain)) or not NUMBER.fullmatch(plain):
        return None
    value = float(plain.replace(",", ""))
    return value if math.isfinite(value) else None


def relaxed_number_match(
    predicted: Any, gold: Any, tolerance: float = 0.05, soft: bool = False
) -> float:
    """r of an answer and a gold answer, in [0, 1]."""
    wanted, given = number_of(gold), number_of(predicted)
    if wanted is None:
        return float(normalised(predicted) == normalised(gold))
    if given is None:
        return 0.0
    error = abs(given - wanted)
    if wanted == 0 or not soft:
        return float(error <= tolerance * abs(wanted))
    return max(0.0, 1 - error / abs(wanted))


def _examples() -> list[Example]:
    return [
        Example(RelaxedNumber(), ["211", "209"], {"answer": [200, "200"]}, [(0, 1)]),
        Example(RelaxedNumber(soft=True), ["250", "211"], {"answer": [200, 200]}, [(0, 1)]),
    ]


@reward("relaxed_number", examples=_examples)
@dataclass(frozen=True)
class RelaxedNumber:
    """A number within a tolerance of the column `answer`.

    Args:
        tolerance: relative, in [0, 1); default 0.05. soft: credit that falls with the error.
    """

    tolerance: float = 0.05
    soft: bool = False

    def __post_init__(self) -> None:
        within(self, "[0, 1)", "tolerance")

    def __call__(
        self, prompts: Texts, completions: Texts, answer: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        return [
            None
            if gold is None
            else max(
                relaxed_number_match(answer_text(text), one, self.tolerance, self.soft)
                for one in golds_of(gold)
            )
            for text, gold in zip(completions, answer, strict=True)
        ]
