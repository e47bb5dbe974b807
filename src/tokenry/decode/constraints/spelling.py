"""Spelling: what the words of a text are, readable one piece of bytes at a time.

A word is a letter, followed by letters and combining marks, joined by single apostrophes
("don't"). All else separates words: spaces, digits, hyphens, punctuation, symbols. Apostrophes at
the edge of a word are quotation marks and no part of it. A word is spelled in symbols:

    letter     lower case, accents and typographic variants folded away (both are options)
    '          either apostrophe, ' or ’
    (space)    any separator

so "Don’t—Élan" is spelled "don't elan". Every character is spelled on its own, therefore the
spelling of a text is the concatenation of the spellings of its pieces.
"""

import codecs
import unicodedata
from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache

from tokenry.core.errors import ConstraintError

SEPARATOR = " "
APOSTROPHE = "'"


@dataclass(frozen=True)
class Spelling:
    """How characters are spelled.

    Args:
        fold_case: "E" is "e".
        fold_accents: "é" and "ｅ" are "e".
    """

    fold_case: bool = True
    fold_accents: bool = True

    def symbols(self, text: str) -> str:
        """The symbols of a text, character by character."""
        return "".join(spelled(character, self) for character in text)

    def letters(self, text: str) -> str:
        """Letters and apostrophes of a filter as words are spelled with them.

        "É" is normalised where case is folded and "ｅ" where widths are; where accents are folded,
        "é" never occurs, and stands neither for "e" alone nor for "é" alone.

        Raises:
            ConstraintError: what no word can have.
        """
        parts = []
        for character in unicodedata.normalize("NFC", text):
            symbols = spelled(character, self)
            plain = unicodedata.normalize("NFKC", character) if self.fold_accents else character
            if symbols not in (folded(plain, self), APOSTROPHE):
                known = bool(symbols) and symbols != SEPARATOR
                why = f"accents are folded away, and {symbols!r} stands for both" * known
                raise ConstraintError(
                    f"{text!r} holds {character!r}, which is in no word here: "
                    + (
                        f"{why}; write {symbols!r}, or pass a Spelling without fold_accents"
                        if known
                        else "words are made of letters and single apostrophes"
                    )
                )
            parts.append(symbols)
        return "".join(parts)

    def words(self, text: str) -> list[str]:
        """The words of a text, in order, spelled."""
        if text.isalpha() and text.isascii():
            return [text.lower() if self.fold_case else text]
        words, word, joint = [], "", ""
        for symbol in [*self.symbols(text), SEPARATOR]:
            if symbol == APOSTROPHE and word and not joint:
                joint = symbol
            elif symbol.isalpha() or (word and not joint and is_mark(symbol)):
                word, joint = word + joint + symbol, ""
            elif word:
                words.append(word)
                word, joint = "", ""
        return words


@lru_cache(maxsize=1 << 16)
def spelled(character: str, spelling: Spelling) -> str:
    """The symbols of one character: usually one; none for a combining mark that is folded away."""
    if character in "'’":
        return APOSTROPHE
    category = unicodedata.category(character)
    if category[0] not in "LM":
        return SEPARATOR
    symbols = character
    # Hangul syllables would fall apart into several letters each.
    if spelling.fold_accents and not "가" <= character <= "힣":
        symbols = unicodedata.normalize("NFKD", character)
        symbols = "".join(symbol for symbol in symbols if not is_mark(symbol))
    symbols = folded(symbols, spelling)
    return "".join(s if s.isalpha() or is_mark(s) else SEPARATOR for s in symbols)


def folded(symbols: str, spelling: Spelling) -> str:
    """Without case, if it is folded; a final sigma is a sigma. One letter stays one letter."""
    if not spelling.fold_case:
        return symbols
    return "".join(s.casefold() if len(s.casefold()) == 1 else s.lower() for s in symbols)


def is_mark(symbol: str) -> bool:
    """Whether a character combines with the letter before it."""
    return unicodedata.category(symbol)[0] == "M"


def split_tail(data: bytes) -> tuple[str, bytes] | None:
    """The text of UTF-8 bytes and the unfinished character at their end; None if malformed."""
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    try:
        text = decoder.decode(data)
    except UnicodeDecodeError:
        return None
    return text, decoder.getstate()[0]


@lru_cache(maxsize=1 << 10)
def spellings_after(tail: bytes, spelling: Spelling) -> frozenset[str]:
    """The symbols of every character whose UTF-8 begins with the bytes `tail`."""
    low, high = span_after(tail)
    known = letters_and_marks()
    letters = known[bisect_left(known, low) : bisect_left(known, high)]
    surrogates = max(0, min(high, 0xE000) - max(low, 0xD800))
    symbols = {spelled.__wrapped__(chr(point), spelling) for point in letters}
    return frozenset(symbols | {SEPARATOR} if len(letters) < high - low - surrogates else symbols)


def span_after(tail: bytes) -> tuple[int, int]:
    """The code points [low, high) whose UTF-8 begins with the bytes `tail`."""
    lead = tail[0]
    length = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
    first = lead & (0x7F >> length)
    for byte in tail[1:]:
        first = first << 6 | byte & 0x3F
    free = 6 * (length - len(tail))
    low = max(first << free, (0x80, 0x800, 0x10000)[length - 2])
    return low, min((first + 1) << free, 0x110000)


# Where Unicode has assigned anything but private use; looking elsewhere would only take time.
ASSIGNED = (range(0x34000), range(0xE0000, 0xE0200))


@lru_cache(maxsize=1)
def letters_and_marks() -> list[int]:
    """The code points that can be in words, in order."""
    points = (point for part in ASSIGNED for point in part)
    return [point for point in points if unicodedata.category(chr(point))[0] in "LM"]


def code_points_after(tail: bytes) -> list[int]:
    """The assigned code points whose UTF-8 begins with the bytes `tail`, surrogates left out."""
    low, high = span_after(tail)
    known = (range(max(low, part.start), min(high, part.stop)) for part in ASSIGNED)
    return [point for part in known for point in part if not 0xD800 <= point < 0xE000]
