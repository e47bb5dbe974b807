"""Passages of real English and code: the documentation of Python's own modules, as `help()` prints
it, and their docstrings. It is on every machine, long, and no model was given these cuts of it."""

from __future__ import annotations

import ast
import importlib
import inspect
import pydoc
import pydoc_data.topics
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from tokenry.core.errors import InputError
from tokenry.tasks.standard_library import sources

MODULES = ("argparse", "asyncio", "collections", "csv", "datetime", "decimal", "email", "inspect")
MODULES += ("json", "logging", "pathlib", "random", "sqlite3", "statistics", "tarfile", "threading")

_MANY = """
    argparse ast asyncio collections concurrent.futures csv datetime decimal difflib email.message
    fractions ftplib functools heapq http.client inspect itertools json logging math mailbox
    multiprocessing numpy optparse os pathlib pickle plistlib random re shutil smtplib socket
    sqlite3 statistics string subprocess tarfile tempfile textwrap threading tkinter tokenize
    torch typing unittest urllib.request uuid wave xml.dom.minidom zipfile
"""
MANY_MODULES = tuple(_MANY.split())
"""Modules of many subjects, whose documentation is a mixture of styles."""


def printed_help(module: str) -> str:
    """What `help()` prints about a module."""
    return pydoc.plain(pydoc.render_doc(module))


@lru_cache(maxsize=1)
def docstrings() -> tuple[str, ...]:
    """Every docstring of the standard library's modules that are one file, in order."""
    texts = (
        ast.get_docstring(node)
        for source in sources()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
    )
    return tuple(text for text in texts if text)


def manual(characters: int) -> list[str]:
    """Topics of the Python reference manual, of so many characters or some more: one source."""
    return _up_to(pydoc_data.topics.topics.values(), characters)


def help_texts(modules: Sequence[str], characters: int) -> list[str]:
    """Documentation of what modules hold, of so many characters or some more: a text of each module
    in turn, a mixture. Modules that this Python has not are left out."""

    def texts_of(module: str) -> Iterator[str]:
        try:
            members = vars(importlib.import_module(module))
        except ImportError:
            return
        for name in sorted(members):
            if not name.startswith("_") and (text := inspect.getdoc(members[name])):
                yield text

    in_turn = zip_longest(*map(texts_of, modules))
    texts = (text for texts in in_turn for text in texts if text is not None)
    return _up_to(dict.fromkeys(texts), characters)


def _up_to(texts: Iterable[str], characters: int) -> list[str]:
    chosen, size = [], 0
    for text in texts:
        if size >= characters:
            break
        chosen.append(text)
        size += len(text)
    return chosen


def passages(
    tokenizer: Any,
    length: int,
    count: int,
    seed: int,
    modules: Sequence[str] = MODULES,
    text: Callable[[str], str] = printed_help,
) -> Tensor:
    """Ids [count, length]: one passage each of `count` modules, cut at a random place.

    text: of a module, by its name. How long it is depends on the version of Python; shorter ones
    are passed over. InputError if fewer than `count` are long enough.
    """
    generator = torch.Generator().manual_seed(seed)
    rows: list[list[int]] = []
    for index in torch.randperm(len(modules), generator=generator).tolist():
        if len(rows) == count:
            break
        ids = tokenizer(text(modules[int(index)]), verbose=False)["input_ids"]
        if len(ids) >= length:
            start = int(torch.randint(0, len(ids) - length + 1, (1,), generator=generator))
            rows.append(ids[start : start + length])
    if len(rows) < count:
        raise InputError(f"only {len(rows)} of {len(modules)} modules have {length} tokens")
    return torch.tensor(rows)
