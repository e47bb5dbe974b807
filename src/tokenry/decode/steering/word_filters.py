"""Word filters: predicates on words that compose with `&`, `|` and `~`.

    short_without_e = WithoutLetters("e") & Length(1, 5)
    short_without_e("brisk")        # True

A filter judges a spelled word: lower-case letters, joined by single apostrophes (see
`tokenry.decode.constraints.spelling`). Apostrophes are not counted as letters. Besides the verdict,
a filter answers three questions that let a decoder build words token by token:

    prefix(p)    False only if no accepted word starts with p
    residual(p)  equal residuals: the same endings are accepted after both prefixes
    letters()    letters that it tells apart; all others may be exchanged for one another

The letters of a filter are those of spelled words: a `WordConstraint` puts them into its own
spelling (`spelled`), "E" as "e", and refuses letters that no word is spelled with.

`safe`: every prefix of an accepted word is accepted, so that prefix = verdict. `exact`: prefix(p)
is True exactly if some string of letters completes p, and there are few residuals. A filter that is
not exact needs a list of words (a lexicon) to be decoded quickly and without dead ends. "Or" of
exact filters is exact, and so is "and" of exact filters that are safe; other combinations are not.

Source: Most Language Models can be Poets too: An AI Writing Assistant and Constrained Text
Generation Studio (arXiv 2306.15926), section 3. The paper judges token strings; judging words, and
with it prefix, residual and exactness, is ours.
"""

import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import ClassVar

from tokenry.core.checks import in_range
from tokenry.core.errors import ConstraintError


class WordFilter(ABC):
    """A predicate on words. Subclasses are frozen dataclasses, so their repr names the filter.

    Attributes:
        lettered: the fields that hold letters of words.
    """

    exact: bool = False
    safe: bool = False
    lettered: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for name in self.lettered:
            check_letters(f"{type(self).__name__}.{name}", getattr(self, name))

    @abstractmethod
    def __call__(self, word: str) -> bool:
        """Whether the word is accepted."""

    def prefix(self, prefix: str) -> bool:
        """False only if no accepted word starts with `prefix`."""
        return self(prefix) if self.safe else True

    def residual(self, prefix: str) -> Hashable:
        """Equal for prefixes after which the same endings are accepted."""
        return prefix

    def letters(self) -> frozenset[str] | None:
        """The letters that the filter tells apart from others; None: all."""
        return None

    def spelled(self, spell: Callable[[str], str]) -> "WordFilter":
        """The same filter with its letters put through `spell`."""
        written = {name: spell(getattr(self, name)) for name in self.lettered}
        return replace(self, **written) if written else self  # type: ignore[type-var]

    def __and__(self, other: "WordFilter") -> "WordFilter":
        return AllOf((self, other))

    def __or__(self, other: "WordFilter") -> "WordFilter":
        return AnyOf((self, other))

    def __invert__(self) -> "WordFilter":
        return Not(self)


@dataclass(frozen=True)
class AnyWord(WordFilter):
    """Accepts every word."""

    exact: ClassVar[bool] = True
    safe: ClassVar[bool] = True

    def __call__(self, word: str) -> bool:
        return True

    def residual(self, prefix: str) -> Hashable:
        return None

    def letters(self) -> frozenset[str] | None:
        return frozenset()


@dataclass(frozen=True)
class WithoutLetters(WordFilter):
    """Lipogram: none of `banned` is in the word."""

    banned: str
    lettered: ClassVar[tuple[str, ...]] = ("banned",)
    exact: ClassVar[bool] = True
    safe: ClassVar[bool] = True

    def __call__(self, word: str) -> bool:
        return not any(letter in word for letter in self.banned)

    def spelled(self, spell: Callable[[str], str]) -> WordFilter:
        return WithoutLetters(spelled_set(self.banned, spell))

    def residual(self, prefix: str) -> Hashable:
        return None

    def letters(self) -> frozenset[str] | None:
        return frozenset(self.banned)


@dataclass(frozen=True)
class OnlyLetters(WordFilter):
    """Every letter of the word is one of `allowed`. Its negation is the paper's weak lipogram."""

    allowed: str
    lettered: ClassVar[tuple[str, ...]] = ("allowed",)
    exact: ClassVar[bool] = True
    safe: ClassVar[bool] = True

    def __call__(self, word: str) -> bool:
        return set(word) <= {*self.allowed, "'"}

    def spelled(self, spell: Callable[[str], str]) -> WordFilter:
        return OnlyLetters(spelled_set(self.allowed, spell))

    def residual(self, prefix: str) -> Hashable:
        return None

    def letters(self) -> frozenset[str] | None:
        return frozenset(self.allowed)


@dataclass(frozen=True)
class WithLetters(WordFilter):
    """Reverse lipogram: each of `required` is in the word."""

    required: str
    lettered: ClassVar[tuple[str, ...]] = ("required",)
    exact: ClassVar[bool] = True

    def __call__(self, word: str) -> bool:
        return set(self.required) <= set(word)

    def residual(self, prefix: str) -> Hashable:
        return frozenset(self.required) - set(prefix)

    def letters(self) -> frozenset[str] | None:
        return frozenset(self.required)


@dataclass(frozen=True)
class Length(WordFilter):
    """The word has `minimum` to `maximum` letters (None: no limit)."""

    minimum: int = 1
    maximum: int | None = None
    exact: ClassVar[bool] = True

    def __post_init__(self) -> None:
        in_range("Length.minimum", self.minimum, "[0, inf)", integer=True)
        in_range("Length.maximum", self.maximum, "[1, inf)", integer=True, optional=True)
        if self.maximum is not None and self.maximum < max(1, self.minimum):
            raise ConstraintError(
                f"no word has {self.minimum} to {self.maximum} letters: "
                "give 1 <= minimum <= maximum"
            )

    def __call__(self, word: str) -> bool:
        return self.minimum <= letter_count(word) and self.prefix(word)

    def prefix(self, prefix: str) -> bool:
        return self.maximum is None or letter_count(prefix) <= self.maximum

    def residual(self, prefix: str) -> Hashable:
        cap = self.minimum if self.maximum is None else self.maximum + 1
        return min(letter_count(prefix), cap)

    def letters(self) -> frozenset[str] | None:
        return frozenset()


@dataclass(frozen=True)
class StartsWith(WordFilter):
    """The word begins with `beginning`."""

    beginning: str
    lettered: ClassVar[tuple[str, ...]] = ("beginning",)
    exact: ClassVar[bool] = True

    def __call__(self, word: str) -> bool:
        return word.startswith(self.beginning)

    def prefix(self, prefix: str) -> bool:
        return prefix.startswith(self.beginning) or self.beginning.startswith(prefix)

    def residual(self, prefix: str) -> Hashable:
        return prefix[: len(self.beginning)]

    def letters(self) -> frozenset[str] | None:
        return frozenset(self.beginning)


@dataclass(frozen=True)
class EndsWith(WordFilter):
    """The word ends with `ending`."""

    ending: str
    lettered: ClassVar[tuple[str, ...]] = ("ending",)
    exact: ClassVar[bool] = True

    def __call__(self, word: str) -> bool:
        return word.endswith(self.ending)

    def residual(self, prefix: str) -> Hashable:
        return prefix[-len(self.ending) :]

    def letters(self) -> frozenset[str] | None:
        return frozenset(self.ending)


@dataclass(frozen=True)
class Where(WordFilter):
    """Any predicate of yours, under the name that error messages should show."""

    predicate: Callable[[str], bool] = field(repr=False)
    name: str

    def __call__(self, word: str) -> bool:
        return bool(self.predicate(word))


@dataclass(frozen=True)
class AllOf(WordFilter):
    """Every part accepts the word."""

    parts: tuple[WordFilter, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", flatten(AllOf, self.parts))

    def spelled(self, spell: Callable[[str], str]) -> WordFilter:
        return AllOf(tuple(part.spelled(spell) for part in self.parts))

    @property
    def safe(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return all(part.safe for part in self.parts)

    @property
    def exact(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        limited = [part for part in self.parts if not isinstance(part, AnyWord)]
        together = self.safe or len(limited) == 1
        return together and all(part.exact for part in limited)

    def __call__(self, word: str) -> bool:
        return all(part(word) for part in self.parts)

    def prefix(self, prefix: str) -> bool:
        return all(part.prefix(prefix) for part in self.parts)

    def residual(self, prefix: str) -> Hashable:
        return tuple(part.residual(prefix) for part in self.parts)

    def letters(self) -> frozenset[str] | None:
        return merged_letters(self.parts)


@dataclass(frozen=True)
class AnyOf(WordFilter):
    """At least one part accepts the word."""

    parts: tuple[WordFilter, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", flatten(AnyOf, self.parts))

    def spelled(self, spell: Callable[[str], str]) -> WordFilter:
        return AnyOf(tuple(part.spelled(spell) for part in self.parts))

    @property
    def safe(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return all(part.safe for part in self.parts)

    @property
    def exact(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return all(part.exact for part in self.parts)

    def __call__(self, word: str) -> bool:
        return any(part(word) for part in self.parts)

    def prefix(self, prefix: str) -> bool:
        return any(part.prefix(prefix) for part in self.parts)

    def residual(self, prefix: str) -> Hashable:
        alive = (part.prefix(prefix) for part in self.parts)
        return tuple(
            (part.residual(prefix),) if viable else None
            for part, viable in zip(self.parts, alive, strict=True)
        )

    def letters(self) -> frozenset[str] | None:
        return merged_letters(self.parts)


@dataclass(frozen=True)
class Not(WordFilter):
    """The part rejects the word."""

    part: WordFilter

    def __call__(self, word: str) -> bool:
        return not self.part(word)

    def spelled(self, spell: Callable[[str], str]) -> WordFilter:
        return Not(self.part.spelled(spell))

    def __invert__(self) -> WordFilter:
        return self.part


def flatten(kind: type, parts: tuple[WordFilter, ...]) -> tuple[WordFilter, ...]:
    """Parts of a chain `a & b & c` side by side instead of nested."""
    return tuple(
        inner
        for part in parts
        for inner in (part.parts if isinstance(part, kind) else (part,))  # pyright: ignore
    )


def merged_letters(parts: tuple[WordFilter, ...]) -> frozenset[str] | None:
    """The letters that at least one of the parts tells apart."""
    merged: frozenset[str] = frozenset()
    for part in parts:
        letters = part.letters()
        if letters is None:
            return None
        merged |= letters
    return merged


def check_letters(name: str, letters: str) -> None:
    """Raise ConstraintError unless there are letters, and nothing that no word has."""
    # combining marks stand behind their letters
    marks = {"M", "L"}
    known = isinstance(letters, str) and all(
        letter in "'’" or unicodedata.category(letter)[0] in marks for letter in letters
    )
    if not known or not any(map(str.isalpha, letters)):
        raise ConstraintError(
            f"{name} is {letters!r}; it must be letters, maybe with single apostrophes: words have "
            "nothing else"
        )


def spelled_set(letters: str, spell: Callable[[str], str]) -> str:
    """A set of letters, spelled; one that is folded into another of them is that one ("eé")."""
    symbols, letters = "", unicodedata.normalize("NFC", letters)
    for letter in letters:
        try:
            symbols += spell(letter)
        except ConstraintError:
            base = unicodedata.normalize("NFD", letter)[0]
            if base == letter or base not in letters:
                raise
    return symbols


def letter_count(word: str) -> int:
    """Letters of a word; apostrophes are not letters."""
    return len(word) - word.count("'")
