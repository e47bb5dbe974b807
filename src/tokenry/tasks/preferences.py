"""Preference pairs that come with the library: helpful against evasive answers, 48 + 12 of them.

Everyday questions (cooking, Python, history, first aid, travel, home, school, work). The chosen
answer says what to do; the rejected one is polite, of similar tone, and says nothing. Written for
Tokenry, in TRL's preference format; no prompt is in both splits.
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Literal

from tokenry.core.errors import UnknownNameError

SPLITS = ("train", "heldout")


def helpful_pairs(split: Literal["train", "heldout"] = "train") -> list[dict[str, str]]:
    """The pairs of a split as dicts with prompt, chosen, rejected."""
    lines = helpful_file(split).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def helpful_file(split: str = "train") -> Path:
    """The JSONL file of a split, to pass to `tokenry train --data`."""
    if split not in SPLITS:
        raise UnknownNameError("split", split, SPLITS)
    return Path(str(files("tokenry.tasks"))) / "data" / f"helpful_{split}.jsonl"
