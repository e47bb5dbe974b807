"""The size of an experiment: full, a smoke test of its form, or larger than a laptop's patience."""

from __future__ import annotations

from typing import Literal, TypeVar

from tokenry.core.errors import InputError

T = TypeVar("T")

Scale = Literal["smoke", "full", "large"]
"""full: what a claim is judged at, at most three minutes on two cores. smoke: under two seconds, of
which only the form counts. large: once, to see whether a claim that was not held wants more scale.
"""


def at(scale: Scale, *, full: T, smoke: T, large: T | None = None) -> T:
    """The setting that belongs to a scale. InputError for a scale that the experiment has not."""
    settings = {"full": full, "smoke": smoke, "large": large}
    if settings.get(scale) is None:
        known = ", ".join(name for name, value in settings.items() if value is not None)
        raise InputError(f"this reproduction has no scale {scale!r}; it has: {known}")
    return settings[scale]  # type: ignore[return-value]
