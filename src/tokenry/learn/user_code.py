"""Values from a user's own Python file, named on the command line as `file.py:name`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from inspect import isfunction
from pathlib import Path
from typing import Any

from tokenry.core.errors import InputError, TokenryError, UnknownNameError


def user_value(place: str) -> Any:
    """What the file defines under the name. Raises InputError when the file cannot be run."""
    file, colon, name = place.rpartition(":")
    if not colon or not file.endswith(".py"):
        raise InputError(f"{place!r} must have the form file.py:name")
    path = Path(file)
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(f"{path} cannot be run: {type(error).__name__}: {error}") from error
    if not hasattr(module, name):
        known = [key for key in vars(module) if not key.startswith("_")]
        raise UnknownNameError(f"name in {path}", name, known)
    return getattr(module, name)


def guarded(place: str, function: Callable[[str], Any]) -> Callable[[str], Any]:
    """A user's function of a text whose exceptions name it, as InputError."""

    def call(text: str) -> Any:
        try:
            return function(text)
        except TokenryError:
            raise
        except Exception as error:
            raise InputError(
                f"{place} raised {type(error).__name__}: {error}, for the text {text[-60:]!r}"
            ) from error

    return call


def user_objective(place: str) -> Any:
    """An objective, or the class of one, from a user's file; InputError for anything else."""
    from tokenry.learn.objective import Objective  # torch, which a user's functions do without

    value = user_value(place)
    if not issubclass(value if isinstance(value, type) else type(value), Objective):
        what = "a function" if isfunction(value) else f"a value of {type(value).__name__}"
        raise InputError(
            f"{place} is {what}, not an objective: derive a class from tokenry.learn.objective."
            "Objective with `needs`, `unit` and `__call__(batch, policy, reference)`"
        )
    return value
