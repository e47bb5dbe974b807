"""Names of a line: what exists passes, what does not is caught, what cannot be known passes."""

import ast
import importlib
import inspect
import textwrap

import pytest

from tokenry.tasks.verifiers.python_names import bound_names, names_exist

SOURCE = inspect.getsource(textwrap)
LINE = next(
    number
    for number, line in enumerate(SOURCE.split("\n"), 1)
    if line.strip() == "chunks = self._split_chunks(text)"
)


def changed(line: str) -> str:
    lines = SOURCE.split("\n")
    return "\n".join([*lines[: LINE - 1], " " * 8 + line, *lines[LINE:]])


@pytest.mark.parametrize(
    "line",
    [
        "chunks = self._split_chunks(text)",
        "chunks = self.width",  # assigned in __init__
        "chunks = re.compile(text)",
        "chunks = text.any_method_at_all()",  # the type of a local variable is not known
        "chunks = len(text)",
        "chunks = ''.join(text)",
    ],
)
def test_lines_of_existing_names_pass(line):
    assert names_exist("textwrap", changed(line), LINE)


@pytest.mark.parametrize(
    "line",
    [
        "chunks = self._split_chunk(text)",
        "chunks = re.compiled(text)",
        "chunks = nothing_of_that_name",
        "chunks = ''.joined(text)",
        "chunks = self.width(",
        "chunks = re.compile(text)\x00",
    ],
)
def test_lines_of_missing_names_fail(line):
    assert not names_exist("textwrap", changed(line), LINE)


def test_a_line_outside_of_functions_fails_and_other_lines_do_not_matter():
    assert not names_exist("textwrap", SOURCE, 1)
    assert names_exist("textwrap", changed("chunks = nothing_of_that_name"), LINE + 1)


@pytest.mark.parametrize(
    ("module", "old", "new", "exists"),
    [
        ("queue", "return self._qsize()", "return self._unknown", False),  # no base
        ("shelve", "return len(self.dict)", "return self._dict", False),  # a base without __init__
        ("http.server", "return self.server_version", "return self.unknown", True),
    ],
)
def test_a_base_class_of_another_module_may_set_more(module, old, new, exists):
    source = inspect.getsource(importlib.import_module(module))
    assert old in source
    line = source[: source.index(old)].count("\n") + 1
    assert names_exist(module, source.replace(old, new, 1), line) == exists


def test_every_way_to_bind_a_name_counts():
    code = """
def f(a, *b, c=1, **d):
    e = 1
    for g in b: pass
    with a as h: pass
    try: import i.j
    except ValueError as k: pass
    from l import m as n
    def o(p): pass
    class q: pass
    (r := 1)
"""
    assert bound_names(ast.parse(code)) == set("fabcdeghiknopqr")
