"""What a role's contract test is put through: the examples of everything registered."""

from collections.abc import Callable
from typing import Any

import pytest

from tokenry.core.registry import Entry, Role


def cases(role: Role, default: Callable[[Any], Any] = lambda kind: kind()) -> list[Any]:
    """One parameter per example, a function that makes it anew.

    default: the example of a method that brings none, from the method itself.
    """
    made = []
    for entry in role:
        for number in range(len(_examples(entry, default))):
            make = lambda entry=entry, number=number: _examples(entry, default)[number]  # noqa: E731
            made.append(pytest.param(make, id=f"{entry.key}-{number}" if number else entry.key))
    return made


def _examples(entry: Entry, default: Callable[[Any], Any]) -> list[Any]:
    return list(entry.examples()) if entry.examples else [default(entry.value)]
