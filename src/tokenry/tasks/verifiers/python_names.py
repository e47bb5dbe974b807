"""Python names: does a line of a module's source use only names and attributes that exist?

Looked up in the syntax tree of the source and in the imported module itself; nothing of the source
is run. What cannot be known without running it, such as the attributes of a local variable, is
taken to exist.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
from dataclasses import dataclass
from typing import Any


def names_exist(module: str, source: str, line: int) -> bool:
    """Whether the source compiles and the names on its line, inside a function, exist.

    Args:
        module: the name of the module that the source is a version of; it is imported.
        source: the whole file.
        line: from 1.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return False
    around = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and node.lineno < line <= (node.end_lineno or 0)
    ]
    around.sort(key=lambda node: node.lineno)  # outermost first
    functions = [node for node in around if isinstance(node, ast.FunctionDef)]
    if not functions:
        return False
    local = {name for function in functions for name in bound_names(function)}
    own = next((node.name for node in reversed(around) if isinstance(node, ast.ClassDef)), None)
    scope = Scope(importlib.import_module(module), tree, local, own)
    on_line = (n for n in ast.walk(functions[0]) if getattr(n, "lineno", None) == line)
    return all(scope.knows(node) for node in on_line)


def bound_names(function: ast.AST) -> set[str]:
    """The names that are given a value somewhere in a function."""
    names = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            names.add(node.name)
        elif isinstance(node, ast.alias):
            names.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
    return names


@dataclass(frozen=True)
class Scope:
    """What a line can see. module: imported. tree: of the source. local: names bound around the
    line. own: the class that the line stands in, if one."""

    module: Any
    tree: ast.AST
    local: set[str]
    own: str | None

    def knows(self, node: ast.AST) -> bool:
        """Whether a name or an attribute exists, as far as that can be known."""
        if isinstance(node, ast.Name):
            return node.id in self.local or self.value(node)[0]
        if not isinstance(node, ast.Attribute):
            return True
        owner = node.value
        if isinstance(owner, ast.Name) and owner.id == "self" and self.own is not None:
            return self.on_self(node.attr, getattr(self.module, self.own, object))
        known, value = self.value(owner)
        return not known or hasattr(value, node.attr)

    def on_self(self, name: str, kind: type) -> bool:
        """Whether the source assigns the attribute in the class or one of its bases, or it is a
        method; a base of another module may set more in its __init__."""
        family = {base.__name__ for base in kind.__mro__}
        assigned = {
            part.attr
            for node in ast.walk(self.tree)
            if isinstance(node, ast.ClassDef) and node.name in family
            for part in ast.walk(node)
            if isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store)
        }
        foreign = any(
            base.__module__ != self.module.__name__
            and inspect.isfunction(vars(base).get("__init__"))
            for base in kind.__mro__[1:]
        )
        return foreign or name in assigned or hasattr(kind, name)

    def value(self, node: ast.AST) -> tuple[bool, Any]:
        """Whether the value of an expression is known without running anything, and the value."""
        if isinstance(node, ast.Constant):
            return True, node.value
        if isinstance(node, ast.Name) and node.id not in self.local:
            for scope in (self.module, builtins):
                if hasattr(scope, node.id):
                    return True, getattr(scope, node.id)
        if isinstance(node, ast.Attribute):
            known, owner = self.value(node.value)
            if known and inspect.ismodule(owner) and hasattr(owner, node.attr):
                return True, getattr(owner, node.attr)
        return False, None
