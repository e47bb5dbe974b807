"""Additions with their results, "12 + 30 = 42": a constraint that no grammar expresses."""

from __future__ import annotations

import re

from tokenry.tasks.verifiers.base import Example, Verifier, verifier

UNFINISHED = re.compile(r"(\d{1,3}( (\+( (\d{1,3}( (= ?)?)?)?)?)?)?)?")
ADDITION = re.compile(r"(\d{1,3}) \+ (\d{1,3}) = (\d+)")


def is_right_addition(text: str) -> bool:
    """Whether the text is an addition of numbers of at most three digits with the right result."""
    match = ADDITION.fullmatch(text)
    return match is not None and int(match[1]) + int(match[2]) == int(match[3])


def may_become_right(text: str) -> bool:
    """Whether the text begins such an addition."""
    if match := ADDITION.fullmatch(text):
        return str(int(match[1]) + int(match[2])).startswith(match[3])
    return bool(UNFINISHED.fullmatch(text))


@verifier(
    "right_addition",
    examples=lambda: [Example(right_addition(), [("12 + 30 = 42",)], [("12 + 30 = 43",), ("42",)])],
)
def right_addition() -> Verifier:
    """The response, stripped, is an addition with the right result."""
    return Verifier("a right addition", lambda response: is_right_addition(response.strip()))
