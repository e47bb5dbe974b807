"""Lists that take seconds to make, because every method is imported, kept between processes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenry
from tokenry.core.files import write_whole
from tokenry.model.hub import home

PACKAGE = Path(tokenry.__file__).parent


def remembered(name: str, make: Callable[[], Any]) -> Any:
    """What `make` gives, as JSON, from `home() / "lists"` unless Tokenry's files have changed."""
    folder = home() / "lists"
    file = folder / f"{name}-{fingerprint(PACKAGE)}.json"
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        value = make()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob(f"{name}-*.json"):
            old.unlink(missing_ok=True)
        write_whole(file, json.dumps(value))
    except OSError:
        pass  # a home that cannot be written to costs time, not the answer
    return value


def fingerprint(folder: Path) -> str:
    """Of the names, sizes and times of the Python files below a folder."""
    digest = hashlib.sha256(str(folder).encode())
    for file in sorted(folder.rglob("*.py")):
        about = file.stat()
        digest.update(f"{file.relative_to(folder)} {about.st_size} {about.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]
