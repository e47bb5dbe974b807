"""Code holes: lines of the standard library of which the rest is to be written anew.

Every assignment and return of a function that stands on one line and uses an attribute of `self` or
of a module is cut behind the first such dot; whether what is put into the hole makes sense is
judged by `tasks.verifiers.python_names`.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tokenry.tasks.verifiers.python_names import names_exist

MODULES = ("bdb", "calendar", "cmd", "code", "codeop", "colorsys", "configparser", "contextlib")
MODULES += ("copy", "csv", "filecmp", "fnmatch", "fractions", "glob", "graphlib", "heapq")
MODULES += ("linecache", "netrc", "pprint", "queue", "reprlib", "sched", "shelve", "shlex")
MODULES += ("string", "textwrap", "timeit", "trace", "wave")


@dataclass(frozen=True)
class CodeHole:
    """The file before and after the hole, and the number of its line."""

    module: str
    before: str
    after: str
    line: int

    def valid(self, text: str) -> bool:
        """Whether the file compiles with the text in its hole, and the line's names exist."""
        return names_exist(self.module, self.before + text + self.after, self.line)


def code_holes(modules: Sequence[str] = MODULES) -> Iterator[CodeHole]:
    """The holes of these modules, in the order of their source."""
    for name in modules:
        module = importlib.import_module(name)
        source = inspect.getsource(module)
        lines = source.split("\n")
        functions = (n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef))
        for node in (node for function in functions for node in ast.walk(function)):
            if not isinstance(node, ast.Assign | ast.Return) or node.value is None:
                continue
            row, dots = node.lineno - 1, attributes(node.value, module)
            if not dots or node.lineno != node.end_lineno or "#" in lines[row]:
                continue
            head = lines[row].encode()[: min(dots)].decode()
            before = "\n".join([*lines[:row], head])
            yield CodeHole(name, before, "\n" + "\n".join(lines[row + 1 :]), node.lineno)


def attributes(expression: ast.expr, module: Any) -> list[int]:
    """Where, in bytes of the line, the attributes of `self` and of modules begin."""
    return [
        part.end_col_offset - len(part.attr.encode())
        for part in ast.walk(expression)
        if isinstance(part, ast.Attribute)
        and part.end_col_offset is not None
        and isinstance(part.value, ast.Name)
        and (part.value.id == "self" or inspect.ismodule(getattr(module, part.value.id, None)))
    ]
