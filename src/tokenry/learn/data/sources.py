"""Where rows come from: a JSONL file, or rows in memory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenry.core.errors import InputError

HALF_A_PAIR = re.compile("[\ud800-\udfff]")  # JSON can write it, no text can hold it


def read_jsonl(path: str | Path) -> list[tuple[int, dict[str, Any]]]:
    """The objects of a JSON lines file with their line numbers; empty lines are skipped."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    found = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(
                f"{path}, line {number} is not JSON: {error.msg} at column {error.colno}"
            ) from None
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number} must be a JSON object, got {line[:40]!r}")
        if "\\u" in line and HALF_A_PAIR.search(json.dumps(row, ensure_ascii=False)):
            raise InputError(f"{path}, line {number} holds half a character (a lone surrogate)")
        found.append((number, row))
    return found


def title(source: Any) -> str:
    return str(source) if isinstance(source, str | Path) else "the rows given"


def numbered_rows(source: Any) -> Iterable[tuple[str, dict[str, Any]]]:
    if isinstance(source, str | Path):
        for number, row in read_jsonl(source):
            yield f"{source}, line {number}", row
    else:
        for number, row in enumerate(source):
            yield f"row {number}", dict(row)
