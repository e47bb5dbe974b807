"""From the options of `tokenry generate` to a constraint: on the text, and on its words."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import and_
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenry.app.terminal import notes, read_text
from tokenry.app.verb import require_use
from tokenry.core.errors import ConstraintError, InputError

if TYPE_CHECKING:
    from tokenry.decode.constraints.base import Constraint
    from tokenry.decode.steering.word_filters import WordFilter
    from tokenry.text.phrase_dictionary import PhraseDictionary


@dataclass(frozen=True)
class TextConstraints:
    """Constraints on the whole text, as they were given, before a tokenizer is there.

    whitespace, lenient: how the schema is read. accept: (may the text go on so, may it end so).
    notes: of each line of a song. python: names have to be known to a completion engine.
    """

    schema: Any = None
    whitespace: str | None = None
    lenient: bool = False
    pattern: str | None = None
    grammar: str | None = None
    contains: tuple[str, ...] = ()
    at_least: int = 0
    accept: tuple[Callable[[str], bool], Callable[[str], bool]] | None = None
    dictionary: PhraseDictionary | None = None
    notes: tuple[int, ...] = ()
    python: bool = False

    @classmethod
    def read(
        cls,
        schema: str | None = None,
        regex: str | None = None,
        grammar: Path | None = None,
        contains: list[str] | None = None,
        at_least: int = 0,
        accept: str | None = None,
        dictionary: Path | None = None,
        melody: str | None = None,
        python: bool = False,
        whitespace: str | None = None,
        lenient: bool = False,
    ) -> TextConstraints:
        """From the options, with the files that they name."""
        from tokenry.text.phrase_dictionary import PhraseDictionary

        for option in ("--whitespace", "--lenient"):
            require_use(
                option, schema is not None, "it says how the schema of --json-schema is read"
            )
        return cls(
            None if schema is None else read_schema(schema),
            whitespace,
            lenient,
            regex,
            None if grammar is None else read_text(grammar),
            tuple(contains or ()),
            at_least,
            None if accept is None else read_predicate(accept),
            None if dictionary is None else PhraseDictionary.read(dictionary),
            () if melody is None else read_melody(melody),
            python,
        )

    @property
    def whole(self) -> bool:
        """Whether a text that the limit cuts off breaks a constraint."""
        alone = TextConstraints(at_least=self.at_least, python=self.python)
        return self != alone

    def constraint(self, loaded: Any, prompt: str) -> Constraint | None:
        """Their conjunction over the model's vocabulary; None if there are none."""
        from tokenry.decode.constraints.grammar import Grammar
        from tokenry.decode.generate import ends

        tokenizer, eos = loaded.tokenizer, ends(*loaded)
        parts: list[Constraint] = []
        if self.schema is not None:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                parts.append(
                    Grammar.json_schema(
                        self.schema,
                        tokenizer,
                        whitespace=self.whitespace,
                        lenient=self.lenient,
                        eos=eos,
                    )
                )
            for warning in said:
                notes().print(str(warning.message), markup=False)
        if self.pattern is not None:
            parts.append(Grammar.regex(self.pattern, tokenizer, eos=eos))
        if self.grammar is not None:
            parts.append(Grammar.lark(self.grammar, tokenizer, eos=eos))
        if self.contains:
            from tokenry.decode.constraints.contains import Contains

            parts.append(Contains(self.contains, tokenizer, eos=eos))
        if self.at_least:
            from tokenry.decode.constraints.length import Length

            parts.append(Length(self.at_least, None, tokenizer, eos=eos))
        if self.accept is not None:
            from tokenry.decode.constraints.predicate import Predicate

            parts.append(Predicate(*self.accept, tokenizer, eos=eos))
        if self.dictionary is not None:
            from tokenry.decode.constraints.dictionary import Dictionary

            parts.append(Dictionary.of(self.dictionary, prompt, tokenizer, eos=eos))
        if self.notes:
            from tokenry.decode.constraints.melody import Melody

            parts.append(Melody(self.notes, tokenizer, eos=eos))
        if self.python:
            from tokenry.decode.constraints.completion import Completion
            from tokenry.decode.constraints.jedi_engine import JediEngine

            parts.append(Completion(JediEngine(), tokenizer, eos=eos))
        return reduce(and_, parts) if parts else None


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


def read_predicate(place: str) -> tuple[Callable[[str], bool], Callable[[str], bool]]:
    """A user's function of the whole text, or a pair: of its beginnings, and of the whole."""
    from tokenry.learn.user_code import guarded, user_value

    value = user_value(place)
    pair = value if isinstance(value, tuple) else ((lambda text: True), value)
    if len(pair) != 2 or not all(map(callable, pair)):
        raise InputError(
            f"{place} must be a function of a text, or a pair of them (may a text begin so, may it "
            f"be so), not {value!r}"
        )
    return guarded(f"--accept {place}", pair[0]), guarded(f"--accept {place}", pair[1])


def read_melody(notes: str) -> tuple[int, ...]:
    """Numbers of notes, one for each line of a song."""
    try:
        counts = tuple(int(part) for part in notes.split(","))
    except ValueError:
        raise InputError(
            f"--melody takes the notes of each line, like 8,6,8,6, not {notes!r}"
        ) from None
    return counts


def word_filter(
    without: list[str] | None,
    required: list[str] | None,
    only: str | None,
    beginning: str | None,
    ending: str | None,
    shortest: int | None,
    longest: int | None,
    syllables: int | None,
    rhyme: str | None,
) -> WordFilter | None:
    """The conjunction of the word filters that were given; None if there are none."""
    from tokenry.decode.steering import phonetics
    from tokenry.decode.steering import word_filters as on_words

    parts: list[WordFilter] = []
    if without:
        parts.append(on_words.WithoutLetters(letters(without, "--without-letter")))
    if required:
        parts.append(on_words.WithLetters(letters(required, "--with-letter")))
    if only is not None:
        parts.append(on_words.OnlyLetters(letters([only], "--only-letters")))
    if beginning is not None:
        parts.append(on_words.StartsWith(letters([beginning], "--starts-with")))
    if ending is not None:
        parts.append(on_words.EndsWith(letters([ending], "--ends-with")))
    if shortest is not None or longest is not None:
        parts.append(on_words.Length(1 if shortest is None else shortest, longest))
    if syllables is not None:
        if syllables < 1:
            raise ConstraintError(f"no word has {syllables} syllables: --syllables is 1 or more")
        parts.append(phonetics.Syllables(syllables))
    if rhyme is not None:
        parts.append(phonetics.RhymesWith(letters([rhyme], "--rhymes-with")))
    return reduce(and_, parts) if parts else None


def letters(values: list[str], option: str) -> str:
    """Lower-case letters, as the filters want them."""
    joined = "".join(values).lower()
    if not joined or not all(symbol.isalpha() for symbol in joined):
        raise InputError(f"{option} takes letters, not {' '.join(values)!r}")
    return joined


def with_words(
    constraint: Constraint | None, words: WordFilter | None, loaded: Any
) -> Constraint | None:
    """The constraint on the text, and the filter on its words."""
    if words is None:
        return constraint
    from tokenry.decode.constraints.words import WordConstraint
    from tokenry.decode.generate import ends

    on_words = WordConstraint(words, loaded.tokenizer, eos=ends(*loaded))
    return on_words if constraint is None else constraint & on_words
