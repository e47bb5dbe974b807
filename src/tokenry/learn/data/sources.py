"""Where rows come from, each read once, with the place of every row and a hash of what was read.

    a file    JSON lines, a JSON array, parquet; gzip around any of them; UTF-8 with or without a
              byte order mark, UTF-16 and UTF-32 with one; also a pipe: /dev/stdin, <(...), or -
    a folder  what `datasets.Dataset.save_to_disk` wrote
    rows      dicts in a list or from a generator, a `datasets.Dataset`

A file is told by its first bytes, not by its name. Fields that are null in parquet and `datasets`
only because another row has them are dropped from messages and tools.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenry.core.errors import InputError
from tokenry.core.files import decoded

Row = dict[str, Any]
Rows = list[tuple[str, Row]]

STRUCTURED = ("prompt", "chosen", "rejected", "completion", "messages", "tools")
OTHER_FORMS = (
    (b"\x28\xb5\x2f\xfd", "zstandard-compressed"),
    (b"BZh", "bzip2-compressed"),
    (b"\xfd7zXZ\x00", "xz-compressed"),
    (b"PK\x03\x04", "a zip archive"),
    (b"ARROW1", "an Arrow file"),
)


@dataclass(frozen=True)
class Source:
    """What was read. rows: (place, row), a place being "prefs.jsonl, line 3". file: its path, or
    None for rows in memory. form: in words. sha256: of the bytes of a file, or of the rows."""

    rows: Rows
    file: str | None
    form: str
    sha256: str

    @property
    def title(self) -> str:
        return self.file or "the rows given"


def read_source(source: Any) -> Source:
    """Read a source of any kind; what was read already stays as it is.

    Raises InputError that names the file, the place in it, and what to do.
    """
    if isinstance(source, Source):
        return source
    if not isinstance(source, str | Path):
        return _from_memory(source)
    path = Path(source)
    if path.is_dir():
        return _from_folder(path)
    raw = read_bytes(path)
    rows, form = _parsed(raw, str(path))
    return Source(rows, str(path), form, hashlib.sha256(raw).hexdigest())


def read_jsonl(path: str | Path) -> list[tuple[int, Row]]:
    """The objects of a JSON lines file with their line numbers; empty lines are skipped."""
    return list(_lines(decoded(read_bytes(Path(path)), str(path)), str(path)))


def read_bytes(path: Path) -> bytes:
    """All that a file or a pipe holds, `-` being standard input. Raises InputError."""
    try:
        if str(path) == "-":
            return sys.stdin.buffer.read()
        if not path.exists():
            raise InputError(f"no such file: {path}")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None


def _parsed(raw: bytes, title: str) -> tuple[Rows, str]:
    if raw.startswith(b"\x1f\x8b"):
        try:
            rows, form = _parsed(gzip.decompress(raw), title)
        except (OSError, EOFError) as error:
            raise InputError(f"{title} is not whole gzip data: {error}") from None
        return rows, f"{form}, gzip"
    if raw.startswith(b"PAR1"):
        return _parquet(raw, title), "parquet"
    for magic, name in OTHER_FORMS:
        if raw.startswith(magic):
            raise InputError(
                f"{title} is {name}; give JSON lines, a JSON array or parquet (gzip is read too)"
            )
    text = decoded(raw, title)
    if text.lstrip()[:1] == "[":
        return _array(text, title), "JSON array"
    return [(f"{title}, line {n}", row) for n, row in _lines(text, title)], "JSON lines"


def _lines(text: str, title: str) -> Iterable[tuple[int, Row]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{title}, line {number}"
        row = _json(line, place)
        if not isinstance(row, dict):
            raise InputError(f"{place} must be a JSON object, got {line[:40]!r}")
        yield number, row


def _array(text: str, title: str) -> Rows:
    first = text.splitlines()[0] if text else ""
    values = _json(text, title)
    for number, row in enumerate(values):
        if not isinstance(row, dict):
            raise InputError(
                f"{title}, item {number} must be a JSON object, got {str(row)[:40]!r}"
                + ("; its first line is an array" if first.rstrip().endswith("]") else "")
            )
    return [(f"{title}, item {number}", row) for number, row in enumerate(values)]


def _json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"at column {error.colno}"
        where = where if error.lineno == 1 else f"at line {error.lineno}, column {error.colno}"
        raise InputError(f"{place} is not JSON: {error.msg} {where}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or [[[[...
        raise InputError(f"{place} cannot be read as JSON: {error}") from None


def _parquet(raw: bytes, title: str) -> Rows:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import read_table
    except ImportError:
        raise InputError(
            f"{title} is parquet, and pyarrow is not installed: pip install tokenry[train]"
        ) from None
    try:
        rows = read_table(io.BytesIO(raw)).to_pylist()
    except (ArrowException, OSError) as error:
        raise InputError(f"{title} is not whole parquet data: {error}") from None
    return [(f"{title}, row {n}", _without_filling(row)) for n, row in enumerate(rows)]


def _from_folder(path: Path) -> Source:
    from datasets import Dataset, load_from_disk

    try:
        data = load_from_disk(str(path))
    except Exception as error:
        raise InputError(
            f"{path} is not a folder that datasets' save_to_disk wrote: {error}"
        ) from None
    if not isinstance(data, Dataset):
        folders = " or ".join(str(path / str(split)) for split in data)
        raise InputError(f"{path} holds several datasets: choose {folders}")
    return _of_rows(data, f"{path}, ", str(path), "datasets folder", _without_filling)


def _from_memory(source: Any) -> Source:
    if isinstance(source, Mapping):
        what = (
            f"the splits {', '.join(map(str, source))}" if hasattr(source, "column_names") else ""
        )
        raise InputError(
            f"data must be rows or a file, got {what or 'one dict'}: give "
            + ("one of them" if what else "a list of rows")
        )
    if hasattr(source, "to_dict") and hasattr(source, "columns"):
        raise InputError('data must be rows, got a table: give table.to_dict("records")')
    if not isinstance(source, Iterable):
        raise InputError(f"data must be a file or rows, got {type(source).__name__}")
    plain = getattr(source, "with_format", None)
    if plain is not None:  # a Dataset, whatever its format
        return _of_rows(plain(None), "", None, "dataset", _without_filling)
    return _of_rows(source, "", None, "in memory", dict)


def _of_rows(
    rows: Iterable[Any], where: str, file: str | None, form: str, keep: Callable[[Any], Row]
) -> Source:
    digest, read = hashlib.sha256(), []
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise InputError(f"{where}row {number} must be a dict, got {type(row).__name__}")
        read.append((f"{where}row {number}", keep(row)))
        digest.update(json.dumps(read[-1][1], sort_keys=True, default=repr).encode() + b"\n")
    return Source(read, file, form, digest.hexdigest())


def _without_filling(row: Mapping[str, Any]) -> Row:
    """A row of Arrow data without the nulls that fill the fields of other rows' messages."""
    return {name: _kept(value) if name in STRUCTURED else value for name, value in row.items()}


def _kept(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _kept(item) for name, item in value.items() if item is not None}
    return [_kept(item) for item in value] if isinstance(value, list) else value
