"""Questions with options: the right one, or with partial credit the right ones.

    matching        r = [ S = S* ]
    partial credit  r = |S| / |S*|  if S is a subset of S*,  else 0

S are the options that the answer of a completion names, S* those of the column `answer`. A wrong
option takes everything, so that naming all of them does not pay.

Sources: TW-GRPO: Reinforcing Video Reasoning with Focused Thinking (arXiv 2505.24718), partial
credit; Mixed-R1 (arXiv 2505.24164), matching, whose normalisation of options is reconstructed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

from tokenry.core.errors import InputError
from tokenry.learn.rewards.answers import answer_text, golds_of
from tokenry.learn.rewards.base import Example, Texts, reward

OPTION = re.compile(r"(?:option\s+)?\(?([a-z])(?:\s*[).:]\s*.*)?", re.IGNORECASE | re.DOTALL)


def options_of(text: str) -> frozenset[str]:
    """The options of "A, C", "(b)" or "B. a river", as capitals; any other part as its words."""
    parts = [part.strip().rstrip(".") for part in text.split(",")]
    return frozenset(_option(part) for part in parts if part)


def multi_choice_reward(predicted: Set[str], gold: Set[str]) -> float:
    """|S| / |S*| when every option of S is right, else 0. Raises InputError for an empty S*."""
    if not gold:
        raise InputError("a question needs at least one right option")
    return len(predicted) / len(gold) if predicted <= gold else 0.0


def _examples() -> list[Example]:
    completions = ["<answer>A,D</answer>", "<answer>A</answer>", "<answer>C, (b), A.</answer>"]
    gold = {"answer": ["A,B,C", ["A", "B", "C"], "a, b, c"]}
    better = [(0, 1), (1, 2)]
    return [
        Example(MultipleChoice(), completions, gold, better),
        Example(MultipleChoice(partial=False), completions, gold, [(0, 2), (1, 2)]),
    ]


@reward("multiple_choice", paper=132, examples=_examples)
@dataclass(frozen=True)
class MultipleChoice:
    """The options of the answer against those of the column `answer`: "A", "A,C" or ["A", "C"].

    Args:
        partial: credit for some of several right options; False asks for all and no other.
    """

    partial: bool = True

    def __call__(
        self, prompts: Texts, completions: Texts, answer: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        rewards: list[float | None] = []
        for text, gold in zip(completions, answer, strict=True):
            right = options_of(",".join(map(str, golds_of(gold))))
            value = multi_choice_reward(options_of(answer_text(text)), right) if gold else None
            rewards.append(value if self.partial or value is None else float(value == 1.0))
        return rewards


def _option(part: str) -> str:
    match = OPTION.fullmatch(part)
    return match[1].upper() if match else " ".join(part.casefold().split())
