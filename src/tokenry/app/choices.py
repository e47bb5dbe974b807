"""Methods named on the command line, with their settings: NAME:SETTING=VALUE,...

The names are a role's of `core.registry`, the settings the parameters of the method that can be
written as a text; what a method needs besides (a model, a tokenizer) the command gives.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from tokenry.core.checks import one_of
from tokenry.core.errors import InputError, UnknownNameError
from tokenry.core.registry import Role

Reader = Callable[[str], Any]  # of a setting's text
SEPARATOR = re.compile(r",(?=\w+=)")  # a comma behind which no setting begins is part of the value


@dataclass(frozen=True)
class Choice:
    """A method that was named, with its settings, before what else it needs is there."""

    name: str
    method: Callable[..., Any]
    settings: Mapping[str, Any]

    def made(self, **context: Any) -> Any:
        """The method, made with its settings and with those things of `context` that it takes."""
        taken = {key: context[key] for key in parameters(self.method) if key in context}
        try:
            return self.method(**taken, **self.settings)
        except TypeError as error:
            raise InputError(f"{self.name}: {error}") from None


def chosen(
    role: Role,
    option: str,
    readers: Mapping[str, Reader] | None = None,
    provided: Collection[str] = (),
    defaults: Mapping[str, Any] | None = None,
) -> Choice:
    """The method that NAME:SETTING=VALUE,... names, its settings read.

    Args:
        role: whose methods can be named.
        option: what was typed. A comma in a value stays there unless a setting begins behind it.
        readers: of settings that are not read by the annotation of their parameter.
        provided: parameters that the command gives, which cannot be set.
        defaults: of parameters that have none, once one such parameter is set.

    Raises:
        UnknownNameError: for a name or a setting that does not exist, with those that do.
        InputError: for a setting without a value, given twice, or missing.
    """
    name, _, rest = option.partition(":")
    method = role[name]
    open_to_user = {key: p for key, p in parameters(method).items() if key not in provided}
    known = {key: read for key, (kind, _) in open_to_user.items() if (read := reader_of(kind))}
    known |= readers or {}
    settings: dict[str, Any] = {}
    for part in filter(None, SEPARATOR.split(rest)):
        key, equals, value = part.partition("=")
        if not equals:
            raise InputError(f"{option!r}: a setting has the form name=value, not {part!r}")
        if key not in known:
            raise UnknownNameError(f"setting of {name}", key, known)
        if key in settings:
            raise InputError(f"{option!r} gives {key} twice")
        settings[key] = known[key](value)
        if open_to_user.get(key, (None,))[0] is bool:
            one_of(f"{key} of {name}", settings[key], (True, False))
    needed = [key for key, (_, required) in open_to_user.items() if required]
    if needed and settings.keys() & set(needed):
        settings = {**(defaults or {}), **settings}
    if missing := [key for key in needed if key not in settings]:
        raise InputError(f"{option!r} needs {' or '.join(missing)}: write {name}:{missing[0]}=...")
    return Choice(name, method, settings)


def parameters(method: Callable[..., Any]) -> dict[str, tuple[Any, bool]]:
    """{name: (annotation, whether it has to be given)} of a class or function."""
    hints = get_type_hints(method.__init__ if inspect.isclass(method) else method)
    named = inspect.signature(method).parameters.values()
    return {
        p.name: (hints.get(p.name, Any), p.default is p.empty)
        for p in named
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    }


def reader_of(kind: Any) -> Reader | None:
    """How a value of this annotation is read; None if it cannot be written as a text."""
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    if str in kinds:
        return str
    for origin, one in ((get_origin(one), one) for one in kinds):
        several = inspect.isclass(origin) and issubclass(origin, Iterable)
        element = reader_of(get_args(one)[0]) if several and origin is not dict else None
        if element:
            return partial(listed, read=element)
    plain = {int, float, bool} & set(kinds) or any(get_origin(one) is Literal for one in kinds)
    return plain_value if plain else None


def plain_value(text: str) -> Any:
    """What a text is as JSON (3, 0.5, true) or as inf; the text itself where it is neither."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return float(text) if text.lstrip("+-").lower() in ("inf", "nan") else text


def listed(text: str, read: Reader = str) -> list[Any]:
    """Several values: a JSON array, or with commas between them."""
    value = plain_value(text)
    return value if isinstance(value, list) else [read(part) for part in text.split(",")]


def as_question(text: str, chat: bool) -> Any:
    """A prompt: the text itself, or a chat message that asks it."""
    return [{"role": "user", "content": text}] if chat else text


def user_function(
    option: str, source: str, kind: str, convert: Callable[[Any], Any]
) -> Callable[[str], Any]:
    """A user's function FILE.py:NAME of a text, its results converted; exceptions name the
    option."""
    from tokenry.learn.user_code import guarded, user_value

    function: Any = user_value(source)
    if not callable(function):
        raise InputError(f"{source} must be a function {kind}, not {function!r}")
    return guarded(option, lambda text: convert(function(text)))
