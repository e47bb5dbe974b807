"""What a role's contract test is put through: the examples of everything registered."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest

from tokenry.core.extras import EXTRAS
from tokenry.core.registry import Entry, Role

EXTRA_OF = {"reasoning-gym": "gym"}  # key -> the extra without which its examples are skipped


def cases(role: Role, default: Callable[[Any], Any] = lambda kind: kind()) -> list[Any]:
    """One parameter per example, a function that makes it anew.

    default: the example of a method that brings none, from the method itself.
    """
    made = []
    for entry in role:
        for number in range(len(_examples(entry, default))):
            make = lambda entry=entry, number=number: _examples(entry, default)[number]  # noqa: E731
            name = f"{entry.key}-{number}" if number else entry.key
            made.append(pytest.param(make, id=name, marks=_skipped(entry.key)))
    return made


def _skipped(key: str) -> list[pytest.MarkDecorator]:
    """A mark where a module of the method's extra is not installed."""
    missing = [name for name in EXTRAS.get(EXTRA_OF.get(key, ""), ()) if find_spec(name) is None]
    return [pytest.mark.skip(reason=f"{missing[0]} is not installed")] if missing else []


def _examples(entry: Entry, default: Callable[[Any], Any]) -> list[Any]:
    return list(entry.examples()) if entry.examples else [default(entry.value)]
