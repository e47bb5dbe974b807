"""Python literals: values as text that passes through JSON and tables and reads back as it was.

ast.literal_eval(as_literal(v)) = v       tuples stay tuples, keys that are numbers stay numbers
"""

from __future__ import annotations

import ast
from typing import Any

import numpy

from tokenry.core.errors import InputError


def as_literal(value: Any) -> str:
    """The text of a value.

    Args:
        value: of dicts, lists, tuples, sets, texts, bytes, numbers, truth values and None; NumPy's
            scalars become Python's.

    Raises:
        InputError: another value, or one that is not equal to itself (NaN).
    """
    try:
        text = repr(_plain(value))
        if ast.literal_eval(text) == value:
            return text
    except (SyntaxError, TypeError, ValueError):
        pass
    raise InputError(f"this cannot be written as a Python literal: {repr(value)[:200]}")


def _plain(value: Any) -> Any:
    if isinstance(value, numpy.generic):
        return value.item()
    if isinstance(value, dict):
        return {_plain(key): _plain(one) for key, one in value.items()}
    for kind in (list, tuple, set):
        if isinstance(value, kind):
            return kind(map(_plain, value))
    return value
