"""What every verb of the command line has: --debug, texts that are Unicode, options with a use.

An option that was typed and changes nothing is refused, not ignored: whoever typed it believes that
it does something. A verb says so where it knows it:

    require_use("--draft-model", draft is not None, "it is what --draft drafts with")
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Collection
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import wraps
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from tokenry.app.renamed import SETTINGS
from tokenry.core.errors import InputError


@dataclass(frozen=True)
class Typed:
    """What was typed of a verb: {parameter: its spellings}, the words, and what they set.

    opposites: spellings that say no to their parameter, such as `--no-x`.
    """

    spellings: dict[str, list[str]] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)
    given: frozenset[str] = frozenset()
    opposites: frozenset[str] = frozenset()

    def spelling(self, name: str) -> str | None:
        """How the user wrote the parameter, else its long option; None for an argument."""
        known = self.spellings.get(name, [])
        options = [option for option in known if option.startswith("-")]
        for word in self.words if name in self.given else ():
            for option in options:
                attached = word.startswith(option) and not option.startswith("--")
                if attached or word.partition("=")[0] == option:
                    return option
        return max((o for o in options if o not in self.opposites), key=len, default=None)

    def parameter(self, option: str) -> str | None:
        """The parameter that has this spelling."""
        return next((name for name, known in self.spellings.items() if option in known), None)

    def translate(self, message: str) -> str:
        """A message of the library in the words of the command line: `max_new_tokens` as `-n`.

        A parameter's name is put into words only where it cannot be a word of the sentence: with an
        underscore in it, or in front of its value.
        """
        for name in self.spellings:
            option = self.spelling(name)
            if option is None:
                continue
            pattern = rf"(?<![\w.-]){name}\b" if "_" in name else rf"^{name}(?= (?:is|must) |=)"
            message = re.sub(pattern, option, message)
            for other in self.spellings[name]:
                alike = (other in self.opposites) == (option in self.opposites)
                if other.startswith("--") and other != option and alike:
                    message = re.sub(rf"(?<![\w-]){re.escape(other)}(?![\w-])", option, message)
        return message


_typed: ContextVar[Typed] = ContextVar("typed", default=Typed())  # noqa: B039 - it is frozen
_debug: ContextVar[bool] = ContextVar("debug", default=False)


def typed() -> Typed:
    """The words of the verb that is running."""
    return _typed.get()


def debugging() -> bool:
    """Whether tracebacks are wanted: `--debug`, or TOKENRY_DEBUG=1."""
    return _debug.get() or os.environ.get("TOKENRY_DEBUG", "0") not in ("", "0")


def forget() -> None:
    """Begin a command line: nothing has been typed yet."""
    _typed.set(Typed())
    _debug.set(False)


def require_use(option: str, has_use: bool, why: str) -> None:
    """Refuse an option that was typed, even with its default value, where it changes nothing.

    Raises InputError: "OPTION has no effect here: WHY".
    """
    if has_use:
        return
    words = typed()
    name = words.parameter(option)
    if name is not None and name in words.given:
        raise InputError(f"{words.spelling(name)} has no effect here: {why}")


def require_only(options: Collection[str], why: str) -> None:
    """Refuse every typed option that is none of these. Raises InputError as `require_use` does."""
    words = typed()
    wanted = {words.parameter(option) for option in (*options, "--seed", "--json", "--debug")}
    for name in words.spellings:
        option = words.spelling(name)
        if option is not None and name not in wanted:
            require_use(option, False, why)


def set_debug(value: bool) -> bool:
    """The option's callback: on once it was given, before the verb or behind it."""
    _debug.set(_debug.get() or value)
    return value


Debug = Annotated[
    bool,
    typer.Option(
        "--debug", is_eager=True, callback=set_debug, help="Show the traceback of an error."
    ),
]


def with_debug(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb with one more option, `--debug`, that it does not see itself."""

    @wraps(verb)
    def run(*arguments: Any, debug: bool = False, **options: Any) -> None:
        verb(*arguments, **options)

    signature = inspect.signature(verb, eval_str=True)
    debug = inspect.Parameter(
        "debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Debug
    )
    parameters = [*signature.parameters.values(), debug]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return run


class Verb(TyperCommand):
    """A command that remembers what was typed and refuses texts that are not Unicode."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        spellings = {
            str(parameter.name): [*parameter.opts, *parameter.secondary_opts]
            for parameter in self.params
        }
        no = frozenset(option for parameter in self.params for option in parameter.secondary_opts)
        words = list(args)
        _typed.set(Typed(spellings, words, opposites=no))
        try:
            rest = super().parse_args(ctx, args)
        except Exception as error:  # the parser's error of an unknown option has its name
            old = str(getattr(error, "option_name", ""))
            if ctx.info_name == "generate" and old in SETTINGS:
                raise InputError(f"{old} is a setting now: write {SETTINGS[old]}") from None
            raise
        given = frozenset(
            name
            for name in spellings
            if getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"
        )
        _typed.set(Typed(spellings, words, given, no))
        for name, value in ctx.params.items():
            ctx.params[name] = unicode_text(value, typed().spelling(name))
        return rest


def unicode_text(value: Any, option: str | None) -> Any:
    """A typed text; bytes that the locale did not decode are read as UTF-8. Paths stay as they are.

    Raises InputError.
    """
    if isinstance(value, list | tuple):
        return type(value)(unicode_text(item, option) for item in value)
    if not isinstance(value, str) or value.isascii():
        return value
    try:
        return os.fsencode(value).decode()
    except UnicodeError:  # os.fsencode: a surrogate that stands for no byte
        escaped = value.encode("ascii", "backslashreplace").decode()
        raise InputError(f"{option or 'the text'} is not Unicode text: {escaped[:80]}") from None
