"""Checks of hyper-parameters: a range, or a choice, written once and worded alike.

Intervals are written as in mathematics: "(0, inf)" is every finite positive number, "[0, 1]" takes
its ends, "[1, inf)" starts at 1, "(0, inf]" takes infinity too. NaN lies in no interval.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from functools import lru_cache
from numbers import Integral, Real
from typing import Any

from tokenry.core.errors import InputError

INTERVAL = re.compile(r"([\[(])\s*(\S+)\s*,\s*(\S+)\s*([\])])")


def in_range(
    name: str, value: Any, interval: str, *, integer: bool = False, optional: bool = False
) -> None:
    """Refuse a number outside `interval` by name, with its value and what was allowed.

    integer: only whole numbers (`True` is none). optional: None is allowed too.
    Raises InputError.
    """
    if value is None and optional:
        return
    kind = Integral if integer else Real
    if isinstance(value, bool) or not isinstance(value, kind) or not _holds(value, interval):
        what = "a whole number" if integer else "a number"
        raise InputError(
            f"{name} is {value!r}; it must be {what} in {interval}" + (" or None" * optional)
        )


def within(
    owner: Any, interval: str, *names: str, integer: bool = False, optional: bool = False
) -> None:
    """`in_range` for attributes of `owner`: the one line of a dataclass's `__post_init__`."""
    for name in names:
        value = getattr(owner, name)
        in_range(
            f"{type(owner).__name__}.{name}", value, interval, integer=integer, optional=optional
        )


def one_of(name: str, value: Any, known: Collection[Any]) -> None:
    """Refuse a value that is none of `known`, naming them. Raises InputError."""
    if value not in known:
        options = ", ".join(repr(option) for option in known)
        raise InputError(f"{name} is {value!r}; it must be one of {options}")


def _holds(value: Any, interval: str) -> bool:
    low, high, takes_low, takes_high = _parsed(interval)
    value = float(value)
    above = value >= low if takes_low else value > low
    below = value <= high if takes_high else value < high
    return above and below


@lru_cache
def _parsed(interval: str) -> tuple[float, float, bool, bool]:
    parts = INTERVAL.fullmatch(interval.strip())
    if parts is None:
        raise ValueError(f"{interval!r} is no interval such as '[0, 1)'")
    left, low, high, right = parts.groups()
    if math.isnan(float(low)) or math.isnan(float(high)):
        raise ValueError(f"{interval!r} has an end that is not a number")
    return float(low), float(high), left == "[", right == "]"
