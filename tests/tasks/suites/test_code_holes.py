"""Code holes: what was cut out makes the file whole again, and is valid; nonsense is not."""

import importlib
import inspect

from tokenry.tasks.suites.code_holes import code_holes


def test_what_was_cut_out_is_valid_and_nonsense_is_not():
    holes = list(code_holes(("textwrap", "queue")))
    assert {hole.module for hole in holes} == {"textwrap", "queue"}
    assert len(holes) > 10
    for hole in holes:
        source = inspect.getsource(importlib.import_module(hole.module))
        line = source.split("\n")[hole.line - 1]
        head = hole.before.split("\n")[-1]
        assert line.startswith(head)
        assert head.endswith(".")
        rest = line.removeprefix(head)
        assert hole.before + rest + hole.after == source
        assert hole.valid(rest)
        assert not hole.valid("")
        assert not hole.valid("no_such_name_anywhere")


def test_the_first_dot_of_self_or_of_a_module_is_where_a_line_is_cut():
    heads = [hole.before.split("\n")[-1].strip() for hole in code_holes(("textwrap",))]
    assert "chunks = self." in heads
    assert all(head.endswith(("self.", "re.")) for head in heads), heads
