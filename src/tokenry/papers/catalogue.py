"""The catalogue of papers and the results of their reproductions.

Results are one JSON file per paper, `results/KEY.json` (`results/KEY-SCALE.json` of another scale
than full): {key, number, claim, scale, held, verdict, needs, reason, checks, measurements: [{label,
value, unit, seed}], plots, seconds, seed, versions}. `held` is false when the verdict is undecided.
The files that Tokenry ships with are the ones behind its gallery.
"""

from __future__ import annotations

import ast
import importlib
import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenry.core.errors import InputError, UnknownNameError
from tokenry.core.files import write_whole
from tokenry.core.versions import installed
from tokenry.lab.scale import Scale
from tokenry.papers.base import Paper

PACKAGE = "tokenry.papers"
POINT = re.compile(
    r"\[\s+([^\s,]+|\"[^\"\n]*\"),\s+([-+.\de]+)\s+\]"
)  # (x, y) of a plot, on one line
DECLARATION = re.compile(r"^PAPER = Paper\(", re.MULTILINE)


@lru_cache(maxsize=1)
def papers() -> dict[str, Paper]:
    """Every paper by its key; numbered ones first, in order.

    The records are read from the files; a file is imported, with all that its method stands on,
    when its reproduction runs.
    """
    folder = Path(__file__).parent
    found = []
    for file in sorted(folder.rglob("*.py")):
        name = ".".join((PACKAGE, *file.relative_to(folder).with_suffix("").parts))
        record = declared(name, file.read_text(encoding="utf-8"))
        if record is not None:
            found.append(record)
    found.sort(key=lambda paper: (paper.number is None, paper.number or 0, paper.key))
    return {paper.key: paper for paper in found}


def declared(module: str, source: str) -> Paper | None:
    """The record that a module declares as `PAPER = Paper(...)`; None if it declares none.

    Arguments that are no literals are had by importing the module.
    """
    start = DECLARATION.search(source)
    if start is None:
        return None
    statement = ast.parse(source[start.start() :]).body[0]  # nothing but definitions comes after
    assert isinstance(statement, ast.Assign)
    assert isinstance(statement.value, ast.Call)
    names = [item.name for item in fields(Paper)]
    given = dict(zip(names, statement.value.args, strict=False))
    given |= {str(keyword.arg): keyword.value for keyword in statement.value.keywords}

    def imported() -> Paper:
        return importlib.import_module(module).PAPER

    given.pop("reproduce")
    try:
        values = {name: ast.literal_eval(node) for name, node in given.items()}
    except ValueError:
        return imported()
    return Paper(**values, reproduce=lambda seed, scale: imported().reproduce(seed, scale))


def paper(key: str) -> Paper:
    """One paper; UnknownNameError with the nearest keys when there is none."""
    known = papers()
    if key not in known:
        raise UnknownNameError("paper", key, known)
    return known[key]


def reproduce(key: str, seed: int = 0, scale: Scale = "full") -> dict[str, Any]:
    """Run one reproduction: the record to be written."""
    record = paper(key)
    start = time.perf_counter()
    with threads(record.threads):
        outcome = record.reproduce(seed, scale)
    seconds = round(time.perf_counter() - start, 1)
    about = {"key": record.key, "number": record.number, "claim": record.claim, "scale": scale}
    return about | outcome.record() | {"seconds": seconds, "seed": seed, "versions": versions()}


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """So many torch threads inside; None leaves them alone."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def write_result(result: dict[str, Any], folder: Path) -> Path:
    """Write the record's file below `folder`; it is there whole or not at all."""
    target = folder / file_name(result["key"], result["scale"])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(result, indent=1, ensure_ascii=False)
        write_whole(target, POINT.sub(r"[\1, \2]", text) + "\n")
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}") from error
    return target


def file_name(key: str, scale: Scale = "full") -> str:
    return f"{key}.json" if scale == "full" else f"{key}-{scale}.json"


def results_folders() -> list[Path]:
    """Where results are looked for: the current folder's, then those that came with Tokenry."""
    package = Path(__file__).parents[1]
    return [Path("results"), package / "results", package.parents[1] / "results"]


def read_result(key: str, scale: Scale = "full") -> dict[str, Any] | None:
    """The newest result of a paper that can be found, or None when it was never reproduced."""
    for folder in results_folders():
        file = folder / file_name(key, scale)
        if file.is_file():
            try:
                return json.loads(file.read_text())
            except ValueError as error:
                raise InputError(f"{file} is not JSON: {error}; reproduce {key} again") from error
    return None


def listing(role: str | None = None, family: str | None = None) -> list[dict[str, Any]]:
    """One row per paper: {number, key, title, arxiv, role, family, claim, held, verdict, seconds}.

    held, verdict and seconds are those of the last reproduction, None when there was none.
    """
    known = papers().values()
    for name, wanted in (("role", role), ("family", family)):
        values = {getattr(record, name) for record in known}
        if wanted is not None and wanted not in values:
            raise UnknownNameError(name, wanted, values)
    return [
        row(record)
        for record in known
        if role in (None, record.role) and family in (None, record.family)
    ]


def row(record: Paper) -> dict[str, Any]:
    """A paper's fields, and whether its claim held."""
    result = read_result(record.key) or {}
    names = ("number", "key", "title", "arxiv", "role", "family", "claim")
    about = {name: getattr(record, name) for name in names}
    measured = {name: result.get(name) for name in ("held", "verdict", "seconds")}
    return about | measured


def versions() -> dict[str, str]:
    """The versions of Python, torch, transformers and Tokenry behind a result."""
    return installed("tokenry", "torch", "transformers", "tokenizers", "numpy")
