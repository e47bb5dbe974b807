"""Word shapes: filters on how the letters of a word are arranged.

    palindrome             w = reversed w
    anagram of a           the letters of w are those of a, each as often
    partial anagram of a   no letter is in w more often than in a
    isogram(c)             no letter is in w more than c times
    edit distance(a, d)    Levenshtein(w, a) <= d
    letter at {i: s}       w[i] = s for all i, False where i is past an end; -1 is the last

Apostrophes are left out of all of them except the edit distance.

Source: Most Language Models can be Poets too: An AI Writing Assistant and Constrained Text
Generation Studio (arXiv 2306.15926), section 3.
"""

import unicodedata
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import ClassVar

from tokenry.core.checks import in_range, within
from tokenry.core.errors import ConstraintError
from tokenry.decode.steering.word_filters import WordFilter, check_letters


@dataclass(frozen=True)
class Palindrome(WordFilter):
    """The word reads the same backwards."""

    def __call__(self, word: str) -> bool:
        letters = letters_of(word)
        return letters == letters[::-1]


@dataclass(frozen=True)
class PartialAnagram(WordFilter):
    """The word can be laid with letters of `source`, each used at most as often as it is there."""

    source: str
    lettered: ClassVar[tuple[str, ...]] = ("source",)
    exact: ClassVar[bool] = True
    safe: ClassVar[bool] = True

    def __call__(self, word: str) -> bool:
        return Counter(letters_of(word)) <= Counter(letters_of(self.source))

    def residual(self, prefix: str) -> Hashable:
        return "".join(sorted(letters_of(prefix)))

    def letters(self) -> frozenset[str] | None:
        return frozenset(self.source)


@dataclass(frozen=True)
class Anagram(WordFilter):
    """The word uses all the letters of `source`, each exactly as often."""

    source: str
    lettered: ClassVar[tuple[str, ...]] = ("source",)
    exact: ClassVar[bool] = True

    def __call__(self, word: str) -> bool:
        return Counter(letters_of(word)) == Counter(letters_of(self.source))

    def prefix(self, prefix: str) -> bool:
        return Counter(letters_of(prefix)) <= Counter(letters_of(self.source))

    def residual(self, prefix: str) -> Hashable:
        return "".join(sorted(letters_of(prefix)))

    def letters(self) -> frozenset[str] | None:
        return frozenset(self.source)


@dataclass(frozen=True)
class Isogram(WordFilter):
    """No letter occurs more than `count` times."""

    count: int = 1
    # Not marked exact: its residuals are the sets of letters, 2^26 of them.
    safe: ClassVar[bool] = True

    def __post_init__(self) -> None:
        within(self, "[1, inf)", "count", integer=True)

    def __call__(self, word: str) -> bool:
        letters = letters_of(word)
        if self.count == 1:
            return len(set(letters)) == len(letters)
        return all(times <= self.count for times in Counter(letters).values())


@dataclass(frozen=True)
class EditDistance(WordFilter):
    """At most `distance` insertions, deletions and substitutions lead to `target`."""

    target: str
    lettered: ClassVar[tuple[str, ...]] = ("target",)
    distance: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, "[0, inf)", "distance", integer=True)

    def __call__(self, word: str) -> bool:
        return edit_row(word, self.target)[-1] <= self.distance

    def prefix(self, prefix: str) -> bool:
        return min(edit_row(prefix, self.target)) <= self.distance


@dataclass(frozen=True)
class LetterAt(WordFilter):
    """The letters at given positions: `LetterAt((0, "b"), (2, "g"))` accepts "bag" and "bugle".

    Negative positions count from the end: `LetterAt((-1, "e"))` accepts "bugle".
    """

    positions: tuple[tuple[int, str], ...]
    exact: ClassVar[bool] = True

    def __init__(self, *positions: tuple[int, str]):
        object.__setattr__(self, "positions", positions)
        for index, letter in positions:
            in_range("a position of LetterAt", index, "(-inf, inf)", integer=True)
            check_letters(f"the letter of LetterAt at {index}", letter)
            if len(unicodedata.normalize("NFC", letter)) != 1:
                raise ConstraintError(
                    f"at {index} LetterAt has {letter!r}; it must be one letter: give each letter "
                    "its own position, or take StartsWith or EndsWith"
                )
        wanted = dict(positions)
        for index, letter in positions:
            if wanted[index] != letter:
                raise ConstraintError(
                    f"no word has {letter!r} and {wanted[index]!r} at {index} at once"
                )

    def __call__(self, word: str) -> bool:
        letters = letters_of(word)
        size = len(letters)
        return all(
            -size <= index < size and letters[index] == letter for index, letter in self.positions
        )

    def prefix(self, prefix: str) -> bool:
        letters = letters_of(prefix)
        return all(
            letters[index : index + 1] in ("", letter)
            for index, letter in self.positions
            if index >= 0
        )

    def residual(self, prefix: str) -> Hashable:
        letters = letters_of(prefix)
        first = max((index + 1 for index, _ in self.positions), default=0)
        last = max((-index for index, _ in self.positions), default=0)
        size = min(len(letters), max(first, last, 0))
        return size, letters[len(letters) - min(size, last) :] if last > 0 else ""

    def letters(self) -> frozenset[str] | None:
        return frozenset(letter for _, letter in self.positions)

    def spelled(self, spell: Callable[[str], str]) -> WordFilter:
        return LetterAt(*((index, spell(letter)) for index, letter in self.positions))


def edit_row(word: str, target: str) -> list[int]:
    """Levenshtein distances from `word` to every prefix of `target`."""
    row = list(range(len(target) + 1))
    for count, letter in enumerate(word, start=1):
        corner, row[0] = row[0], count
        for column, wanted in enumerate(target, start=1):
            best = min(corner + (letter != wanted), row[column] + 1, row[column - 1] + 1)
            corner, row[column] = row[column], best
    return row


def letters_of(word: str) -> str:
    return word.replace("'", "")
