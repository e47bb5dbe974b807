"""Boxes against gold boxes: intersection over union.

    IoU(a, g) = |a n g| / |a u g|
    r         = sum of the IoU of matched pairs / max(#a, #g)

A box is [x1, y1, x2, y2] with x1 < x2 and y1 < y2; any other has an IoU of 0. Of several, pairs are
matched greedily, the largest IoU first, each box once.

Source: Mixed-R1: Unified Reward Perspective (arXiv 2505.24164). Reconstructed: the matching of
several boxes and its denominator.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenry.core.errors import InputError
from tokenry.learn.rewards.answers import answer_text
from tokenry.learn.rewards.base import Example, Texts, reward

Box = tuple[float, float, float, float]
NUMBER = r"\s*([-+]?(?:\d+\.?\d*|\.\d+))\s*"
BOX = re.compile(rf"[\[(]{NUMBER},{NUMBER},{NUMBER},{NUMBER}[\])]")


def parse_boxes(text: str) -> list[Box]:
    """All boxes of a text, "[1, 2, 3.5, 4]" or "(1,2,3,4)", in order."""
    found = (tuple(map(float, match.groups())) for match in BOX.finditer(text))
    return [box for box in found if all(map(math.isfinite, box))]  # type: ignore[misc]


def box_iou(a: Box, b: Box) -> float:
    """IoU of two boxes, in [0, 1]; 0 for one without area or with its corners reversed."""
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (a, b) if x2 > x1 and y2 > y1]
    if len(areas) < 2:
        return 0.0
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0.0) * max(height, 0.0)
    return both / (sum(areas) - both)


def boxes_iou(predicted: Sequence[Box], gold: Sequence[Box]) -> float:
    """r of several boxes, in [0, 1]; 0 where there is none."""
    pairs = [(box_iou(a, b), -m, -n) for m, a in enumerate(predicted) for n, b in enumerate(gold)]
    total, used_predicted, used_gold = 0.0, set(), set()
    for value, m, n in sorted(pairs, reverse=True):
        if m not in used_predicted and n not in used_gold:
            total += value
            used_predicted.add(m)
            used_gold.add(n)
    return total / max(len(predicted), len(gold), 1)


def _examples() -> list[Example]:
    return [
        Example(
            BoxIoU(),
            ["no box", "[1, 1, 3, 3]", "<answer>[0, 0, 2, 2]</answer>"],
            {"answer": ["[0,0,2,2]", [0, 0, 2, 2], [[0, 0, 2, 2]]]},
            better=[(0, 1), (1, 2)],
        )
    ]


@reward("box_iou", examples=_examples)
@dataclass(frozen=True)
class BoxIoU:
    """The boxes of an answer against those of the column `answer`: a text, a box or a list of them.

    Raises InputError for a gold answer without a box.
    """

    def __call__(
        self, prompts: Texts, completions: Texts, answer: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        rewards: list[float | None] = []
        for text, gold in zip(completions, answer, strict=True):
            if gold is None:
                rewards.append(None)
                continue
            boxes = parse_boxes(str(gold))  # a list is written as its text
            if not boxes:
                raise InputError(f"the gold answer {gold!r} has no box [x1, y1, x2, y2]")
            rewards.append(boxes_iou(parse_boxes(answer_text(text)), boxes))
        return rewards
