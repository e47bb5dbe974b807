"""Phonetic word filters: syllables, metre and rhyme, from the CMU pronouncing dictionary.

A word may have several pronunciations; a filter accepts it if one of them fits. What happens to a
word that the dictionary does not have is the option `unknown`:

    "reject"  it is not accepted (the paper's rule)
    "guess"   syllables are counted as groups of vowel letters, a silent final e left out, and two
              words rhyme if they agree from the last such group on (default)

There is no guess for metre. A pronunciation's rhyme is its sounds from the last stressed vowel on.

Source: Most Language Models can be Poets too: An AI Writing Assistant and Constrained Text
Generation Studio (arXiv 2306.15926), section 3. The guesses are ours.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal, get_args

from tokenry.core.checks import one_of, within
from tokenry.core.errors import ConstraintError
from tokenry.decode.steering.word_filters import WordFilter

Unknown = Literal["guess", "reject"]
VOWELS = re.compile("[aeiouy]+")
SILENT_E = re.compile("(?<=[^aeiouyl'])es?$|(?<=[aeiouy])les?$|(?<=[^aeiouytd'])ed$")


@dataclass(frozen=True)
class Syllables(WordFilter):
    """The word can be spoken with `count` syllables."""

    count: int
    unknown: Unknown = "guess"

    def __post_init__(self) -> None:
        within(self, "[1, inf)", "count", integer=True)
        one_of("Syllables.unknown", self.unknown, get_args(Unknown))

    def __call__(self, word: str) -> bool:
        return self.count in syllable_counts(word, self.unknown)


@dataclass(frozen=True)
class RhymesWith(WordFilter):
    """The word rhymes with `target` and is another word."""

    target: str
    unknown: Unknown = "guess"
    lettered: ClassVar[tuple[str, ...]] = ("target",)

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("RhymesWith.unknown", self.unknown, get_args(Unknown))
        if not rhymes_of(self.target, self.unknown):
            raise ConstraintError(
                f"the pronunciation of {self.target!r} is not known: take a word of the CMU "
                'dictionary, or unknown="guess"'
            )

    def __call__(self, word: str) -> bool:
        if word == self.target:
            return False
        if (pronunciations(word) and pronunciations(self.target)) or self.unknown == "reject":
            sounds = rhymes_of(word, self.unknown)
            return not sounds.isdisjoint(rhymes_of(self.target, self.unknown))
        return guessed_rhyme(word) == guessed_rhyme(self.target)


@dataclass(frozen=True)
class Meter(WordFilter):
    """The word's stresses match `pattern`: 1 primary, 2 secondary, 0 none; "." stands for any."""

    pattern: str

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except (re.error, TypeError) as error:
            raise ConstraintError(
                f"Meter.pattern is {self.pattern!r}; it must be a regular expression over 0, 1 and "
                f"2: {error}"
            ) from None

    def __call__(self, word: str) -> bool:
        import pronouncing

        return any(
            re.fullmatch(self.pattern, pronouncing.stresses(phones))
            for phones in pronunciations(word)
        )


def syllable_counts(word: str, unknown: Unknown = "guess") -> set[int]:
    """The numbers of syllables with which a word may be spoken; empty if unknown."""
    import pronouncing

    known = {pronouncing.syllable_count(phones) for phones in pronunciations(word)}
    return {guessed_syllables(word)} if not known and unknown == "guess" else known


def guessed_syllables(word: str) -> int:
    """Groups of vowel letters, a silent final e (es, ed) left out; at least one."""
    return max(1, len(VOWELS.findall(SILENT_E.sub("", word))))


def rhymes_of(word: str, unknown: Unknown = "guess") -> set[str]:
    """The sounds from the last stressed vowel on, one entry for each pronunciation."""
    import pronouncing

    known = {pronouncing.rhyming_part(phones) for phones in pronunciations(word)}
    return {guessed_rhyme(word)} if not known and unknown == "guess" else known


def guessed_rhyme(word: str) -> str:
    """The letters from the last group of vowels on, a silent final e not counted as one."""
    groups = list(VOWELS.finditer(SILENT_E.sub("", word))) or list(VOWELS.finditer(word))
    return word[groups[-1].start() :] if groups else word


@lru_cache(maxsize=1 << 16)
def pronunciations(word: str) -> tuple[str, ...]:
    """The dictionary's pronunciations of a word, as ARPAbet phones with stresses; maybe none."""
    import pronouncing

    return tuple(pronouncing.phones_for_word(word))


@lru_cache(maxsize=1)
def dictionary() -> tuple[str, ...]:
    """The words of the CMU pronouncing dictionary (126,000), the default lexicon."""
    import pronouncing

    pronouncing.init_cmu()
    return tuple(dict.fromkeys(word for word, _ in pronouncing.pronunciations))
