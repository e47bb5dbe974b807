"""Methods named on the command line with their settings: NAME or NAME:setting=value,..."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

from tokenry.core.errors import InputError, UnknownNameError
from tokenry.core.registry import Role


def configured(role: Role, option: str, **given: Any) -> Any:
    """The method that an option names, made with the option's settings and those given.

    Values are read as JSON where they are (3, 0.5, true) and as text where they are not.
    """
    name, _, rest = option.partition(":")
    method = role[name]
    known = [field.name for field in fields(method)]
    settings = dict(given)
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise InputError(f"{option!r}: a setting has the form name=value, not {part!r}")
        if key not in known:
            raise UnknownNameError(f"setting of {name}", key, known)
        settings[key] = plain_value(value)
    try:
        return method(**settings)
    except TypeError as error:
        raise InputError(f"{option!r}: {error}") from None


def plain_value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
