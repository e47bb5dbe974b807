"""Format of a completion: every part in its tags, in order, once.

    r_i = [ y_i = <think> ... </think> <answer> ... </answer> ]

White space may stand between and around the parts. Source: Mixed-R1 (arXiv 2505.24164) and TW-GRPO
(arXiv 2505.24718), whose format rewards are this one; a pattern of one's own is
`constraint_rate(checks=['regex("...")'])`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenry.core.errors import InputError
from tokenry.learn.rewards.base import Example, Texts, reward

RIGHT = "<think>b</think>\n<answer>a</answer>"


def _examples() -> list[Example]:
    return [
        Example(Tags(), ["a", f"So: {RIGHT}", RIGHT], better=[(0, 2), (1, 2)]),
        Example(Tags(end=True), ["a", f"{RIGHT} So.", f"So: {RIGHT}"], better=[(0, 2), (1, 2)]),
    ]


@reward("tags", examples=_examples)
@dataclass(frozen=True)
class Tags:
    """1 for a text of these parts, each once, 0 for any other.

    Args:
        names: of the tags, in order; default think, answer.
        end: whether text may stand before the first tag (TW-GRPO); default False (Mixed-R1).

    Raises:
        InputError: no names, or one twice.
    """

    names: Sequence[str] = ("think", "answer")
    end: bool = False

    def __post_init__(self) -> None:
        if not self.names or len(set(self.names)) < len(self.names):
            raise InputError(f"tags need names, each once; got {list(self.names)}")

    def __call__(self, prompts: Texts, completions: Texts, **columns: Any) -> list[float]:
        parts = [rf"<{re.escape(name)}>.*?</{re.escape(name)}>" for name in self.names]
        pattern = re.compile((".*" if self.end else r"\s*") + r"\s*".join(parts) + r"\s*", re.S)
        tags = [f"<{slash}{name}>" for name in self.names for slash in ("", "/")]
        return [
            float(all(text.count(tag) == 1 for tag in tags) and bool(pattern.fullmatch(text)))
            for text in completions
        ]
