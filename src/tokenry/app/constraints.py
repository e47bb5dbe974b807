"""From the options of `tokenry generate` to a constraint: on the text, and on its words."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from operator import and_
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenry.app.choices import Choice, Reader, chosen, plain_value, user_function
from tokenry.app.streaming import warnings_as_notes
from tokenry.app.terminal import read_text
from tokenry.core.errors import ConstraintError, InputError

if TYPE_CHECKING:
    from tokenry.decode.constraints.base import Constraint
    from tokenry.decode.steering.word_filters import WordFilter

TEXTS = "Constraints"
PROVIDED = ("tokenizer", "eos", "engine", "filter")
MAY_BE_CUT = ("length", "words", "completion")  # a text that the limit cuts off breaks the others

LISTED = """[bold]--constrain[/] NAME:SETTING=VALUE,...
  json:schema=FILE         JSON; whitespace=' ?' between its parts
  regex:pattern=R          matches as a whole
  lark:grammar=FILE        is derived by a Lark grammar
  contains:strings=a,b     has each of them
  stop:strings=a,b         ends right behind one of them
  length:minimum=9         in tokens; maximum=20
  predicate:complete=FILE.py:NAME   a Python function says yes
  dictionary:phrases=FILE  translates the prompt's phrases as this TSV says
  melody:phrases=8,6,8,6   lines that can be sung on so many notes each
  completion               Python whose names jedi knows
  words:without=e,with=a   every word; only, starts, ends, shortest, longest,
                           syllables, rhymes"""

Constrain = Annotated[
    list[str] | None,
    typer.Option(
        "--constrain",
        metavar="NAME:SETTING=...",
        help="What the text has to satisfy, of those listed below (repeat it).",
        rich_help_panel=TEXTS,
    ),
]
JsonSchema = Annotated[
    str | None,
    typer.Option(
        "--json-schema", metavar="FILE", help="JSON of this schema.", rich_help_panel=TEXTS
    ),
]
Regex = Annotated[
    str | None,
    typer.Option("--regex", metavar="R", help="Matches as a whole.", rich_help_panel=TEXTS),
]
LarkGrammar = Annotated[
    str | None,
    typer.Option("--grammar", metavar="FILE", help="Of a Lark grammar.", rich_help_panel=TEXTS),
]
Contains = Annotated[
    list[str] | None,
    typer.Option("--contains", metavar="S", help="Has this (repeat it).", rich_help_panel=TEXTS),
]
Python = Annotated[
    bool,
    typer.Option(
        "--python/--no-python", help="Python whose names jedi knows.", rich_help_panel=TEXTS
    ),
]
WithoutLetter = Annotated[
    list[str] | None,
    typer.Option(
        "--without-letter", metavar="L", help="Banned (repeat it).", rich_help_panel=TEXTS
    ),
]


@dataclass(frozen=True)
class TextConstraints:
    """Constraints that were named, their files read, before a tokenizer is there."""

    choices: tuple[Choice, ...] = ()

    @classmethod
    def read(
        cls,
        constrain: list[str] | None = None,
        json_schema: str | None = None,
        regex: str | None = None,
        grammar: str | None = None,
        contains: list[str] | None = None,
        python: bool = False,
        without_letter: list[str] | None = None,
    ) -> TextConstraints:
        """From `--constrain` and its short forms, which are those that people know.

        Raises InputError, ConstraintError or UnknownNameError for what cannot be read.
        """
        from tokenry.decode.constraints.base import constraint

        short: list[tuple[str, dict[str, Any]]] = []
        if json_schema is not None:
            short.append(("json", {"schema": read_schema(json_schema)}))
        if regex is not None:
            short.append(("regex", {"pattern": regex}))
        if grammar is not None:
            short.append(("lark", {"grammar": read_text(grammar)}))
        if contains:
            short.append(("contains", {"strings": contains}))
        if python:
            short.append(("completion", {}))
        if without_letter:
            short.append(("words", {"without": word_filters()["without"]("".join(without_letter))}))
        choices = [Choice(name, constraint[name], given) for name, given in short]
        choices += [read_constraint(option) for option in constrain or ()]
        return cls(with_one_filter(choices))

    def __bool__(self) -> bool:
        return bool(self.choices)

    @property
    def whole(self) -> bool:
        """Whether a text that the limit cuts off breaks a constraint."""
        return any(choice.name not in MAY_BE_CUT for choice in self.choices)

    def check_limit(self, max_new_tokens: int) -> None:
        """Raise InputError where a text has to be longer than it may become."""
        for choice in self.choices:
            least = choice.settings.get("minimum", 0) if choice.name == "length" else 0
            if isinstance(least, int) and least > max_new_tokens:
                raise InputError(
                    f"length:minimum is {least} and --max-new-tokens {max_new_tokens}: no text is "
                    "so long and so short"
                )

    def constraint(self, loaded: Any, prompt: str) -> Constraint | None:
        """Their conjunction over the model's vocabulary; None if there are none."""
        from tokenry.decode.constraints.dictionary import Dictionary
        from tokenry.decode.constraints.jedi_engine import JediEngine
        from tokenry.decode.generate import ends

        context: dict[str, Any] = {"tokenizer": loaded.tokenizer, "eos": ends(*loaded)}
        parts = []
        with warnings_as_notes():
            for choice in self.choices:
                if choice.name == "dictionary":
                    options = dict(choice.settings)
                    parts.append(
                        Dictionary.of(options.pop("phrases"), prompt, **context, **options)
                    )
                elif choice.name == "completion":
                    parts.append(choice.made(engine=JediEngine(), **context))
                else:
                    parts.append(choice.made(**context))
        return reduce(and_, parts) if parts else None


def read_constraint(option: str) -> Choice:
    """A constraint of `--constrain`, with the files that its settings name."""
    from tokenry.decode.constraints.base import constraint
    from tokenry.text.phrase_dictionary import PhraseDictionary

    name = option.partition(":")[0]
    files: dict[str, Mapping[str, Reader]] = {
        "json": {"schema": read_schema},
        "lark": {"grammar": read_text},
        "dictionary": {"phrases": PhraseDictionary.read},
        "predicate": {"prefix": read_predicate, "complete": read_predicate},
        "melody": {"lexicon": read_lines},
        "words": {"lexicon": read_lines, **word_filters()},
    }
    defaults = {
        "length": {"minimum": 0, "maximum": None},
        "predicate": {"prefix": lambda text: True},
    }
    return chosen(constraint, option, files.get(name), PROVIDED, defaults.get(name))


def read_schema(source: str) -> Any:
    """A JSON schema from a file, or from the option's own text if that is an object."""
    from tokenry.decode.constraints.json_schema import read_json

    inline = source.lstrip().startswith("{")
    name = "the schema" if inline else source
    try:
        schema = read_json(source if inline else read_text(source))
    except ConstraintError as error:
        raise ConstraintError(f"{name} cannot be used: {error}") from None
    except json.JSONDecodeError as error:
        raise ConstraintError(
            f"{name} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from None
    if not isinstance(schema, dict | bool):
        raise ConstraintError(f"{name} is not a JSON schema: it holds {str(schema)[:40]}")
    return schema


def read_predicate(source: str) -> Callable[[str], bool]:
    """A user's function of a text: whether it may begin so, or be so."""
    option = f"--constrain predicate {source}"
    return user_function(option, source, "of a text that says yes or no", bool)


def read_lines(path: str) -> list[str]:
    """A word from each line of a file."""
    return [line.strip() for line in read_text(Path(path)).splitlines() if line.strip()]


# --- words ----------------------------------------------------------------------------------------


def word_filters() -> dict[str, Reader]:
    """How the settings of `words` are read: as a filter each, the two lengths as numbers."""
    from tokenry.decode.steering import phonetics
    from tokenry.decode.steering import word_filters as on_words

    of_letters = {
        "without": on_words.WithoutLetters,
        "with": on_words.WithLetters,
        "only": on_words.OnlyLetters,
        "starts": on_words.StartsWith,
        "ends": on_words.EndsWith,
        "rhymes": phonetics.RhymesWith,
    }

    def reader(name: str, kind: Callable[[str], WordFilter]) -> Reader:
        return lambda text: kind(letters(text, f"words:{name}"))

    readers: dict[str, Reader] = {name: reader(name, kind) for name, kind in of_letters.items()}
    readers["syllables"] = lambda text: phonetics.Syllables(plain_value(text))
    return readers | {"shortest": plain_value, "longest": plain_value}


def letters(text: str, setting: str) -> str:
    """Lower-case letters, as the filters want them."""
    if not text or not all(symbol.isalpha() for symbol in text):
        raise InputError(f"{setting} takes letters, not {text!r}")
    return text.lower()


def with_one_filter(choices: list[Choice]) -> tuple[Choice, ...]:
    """The choices with one constraint on words, whose filter is the conjunction of all: apart, each
    might begin a word that another cannot end."""
    from tokenry.decode.steering.word_filters import Length

    filters: list[WordFilter] = []
    options: dict[str, Any] = {}
    words = [choice for choice in choices if choice.name == "words"]
    for choice in words:
        given = dict(choice.settings)
        made = {name: given.pop(name) for name in word_filters() if name in given}
        if both := options.keys() & given.keys():
            raise InputError(f"words: {', '.join(both)} is given twice")
        options |= given
        shortest, longest = made.pop("shortest", None), made.pop("longest", None)
        filters += made.values()
        if (shortest, longest) != (None, None):
            filters.append(Length(1 if shortest is None else shortest, longest))
    others = [choice for choice in choices if choice.name != "words"]
    if not words:
        return tuple(others)
    if not filters:
        raise InputError(f"'words' needs one of {', '.join(word_filters())}: write words:without=e")
    one = replace(words[0], settings={**options, "filter": reduce(and_, filters)})
    return (*others, one)
