"""Mixed-R1: each row is rewarded by what its type asks for, in one run.

    R_i = R_type(i)(a_i, g_i) + lambda_fmt R_fmt(y_i)

type(i) is the row's column `type`, a_i the answer in y_i, g_i the column `answer`; R_fmt is 1 for
<think>...</think><answer>...</answer>. A type's reward sees the rows of its type alone. Advantages
within a prompt's group keep the scales of the types apart.

Source: Mixed-R1: Unified Reward Perspective for Reasoning Capability in Multimodal Large Language
Models (arXiv 2505.24164). Reconstructed: lambda_fmt = 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenry.core.checks import within
from tokenry.core.errors import InputError, UnknownNameError
from tokenry.learn.rewards.base import Example, RewardFn, Texts, columns_of, reward, values_of
from tokenry.learn.rewards.tags import Tags

ROUTES: dict[str, str | RewardFn] = {
    "matching": "multiple_choice(partial=False)",
    "chart": "relaxed_number",
    "iou": "box_iou",
}


def _examples() -> list[Example]:
    completions = ["A", "<think>x</think><answer>B</answer>", "209", "[9, 9, 8, 8]"]
    columns = {
        "type": ["matching", "matching", "chart", "iou"],
        "answer": ["B", "B", 200, [0, 0, 2, 2]],
    }
    return [Example(MixedReward(), completions, columns, better=[(0, 1), (3, 2), (2, 1)])]


@reward("mixed", paper=125, examples=_examples)
@dataclass(frozen=True)
class MixedReward:
    """A reward for each type of row, and one for the format.

    Args:
        routes: type -> reward, or its name; default matching, chart and iou. Open answers take
            `routes=ROUTES | {"open": BMAS(TokenEmbedding.of(model, tokenizer))}`.
        format_weight: lambda_fmt, in [0, inf); default 1.

    Raises:
        InputError: no routes. UnknownNameError: a row whose type has none.
    """

    routes: Mapping[str, str | RewardFn] = field(default_factory=lambda: dict(ROUTES))
    format_weight: float = 1.0

    def __post_init__(self) -> None:
        within(self, "[0, inf)", "format_weight")
        if not self.routes:
            raise InputError("MixedReward needs routes: a reward for each type of row")

    @property
    def required_columns(self) -> tuple[str, ...]:
        return columns_of(*self.routes.values())

    def __call__(
        self, prompts: Texts, completions: Texts, type: Sequence[str], **columns: Any
    ) -> list[float | None]:
        rows_of: dict[str, list[int]] = {}
        for row, name in enumerate(type):
            if name not in self.routes:
                raise UnknownNameError("type of row", str(name), self.routes)
            rows_of.setdefault(name, []).append(row)
        rewards: list[float | None] = [None] * len(completions)
        for name, rows in rows_of.items():
            own = {k: [values[row] for row in rows] for k, values in columns.items()}
            x, y = ([side[row] for row in rows] for side in (prompts, completions))
            values = values_of(self.routes[name], x, y, own)
            for row, value in zip(rows, values, strict=True):
                rewards[row] = value
        form = Tags()(prompts, completions)
        return [
            None if value is None else value + self.format_weight * bonus
            for value, bonus in zip(rewards, form, strict=True)
        ]
