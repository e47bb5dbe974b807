"""Word boundaries: the places in a text where a phrase may begin and end.

Characters are of four kinds: letters and digits (and "_") of scripts that write spaces between
words; those of scripts that do not (Chinese, Japanese, Thai, Khmer, ...); combining marks, which
belong to the character before them; and everything else. A boundary is at both ends of the text
and between two characters a, b unless

    b is a combining mark, or
    a and b are both letters or digits of scripts with spaces (marks behind a do not count).

So "cat" stands in "the cat." and not in "cats", and "京" stands in "東京".

`marked` writes the boundaries into the bytes of a text, as a byte that UTF-8 never uses. A phrase
occurs between boundaries exactly where its marked bytes occur in those of the text.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from functools import lru_cache
from typing import Literal

BOUNDARY = b"\xff"
Kind = Literal["word", "unspaced", "mark", "other"]

# First and last code points of the scripts without spaces, by block.
UNSPACED = [
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x0F00, 0x0FFF),  # Tibetan
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x1950, 0x19DF),  # Tai Le, New Tai Lue
    (0x2E80, 0x312F),  # radicals, kana, Bopomofo
    (0x3190, 0x31FF),  # kana extensions
    (0x3400, 0x9FFF),  # ideographs
    (0xF900, 0xFAFF),  # compatibility ideographs
    (0x1B000, 0x1B16F),  # kana supplements
    (0x20000, 0x3FFFF),  # ideographs, extensions
]
_FIRST = [first for first, _ in UNSPACED]


@lru_cache(maxsize=1 << 16)
def kind_of(character: str) -> Kind:
    """Which of the four kinds a character is of."""
    if unicodedata.category(character)[0] == "M":
        return "mark"
    if not (character.isalnum() or character == "_"):
        return "other"
    block = bisect_right(_FIRST, ord(character)) - 1
    unspaced = block >= 0 and ord(character) <= UNSPACED[block][1]
    return "unspaced" if unspaced else "word"


def is_boundary(before: Kind | None, after: Kind | None) -> bool:
    """Whether a boundary lies between two characters; None is the edge of the text.

    before: the kind of the last character that is not a mark.
    """
    return before is None or after is None or not (after == "mark" or before == after == "word")


def boundaries(text: str) -> list[bool]:
    """For each of the len(text) + 1 places between characters, whether it is a boundary."""
    found, before = [], None
    for character in text:
        kind = kind_of(character)
        found.append(is_boundary(before, kind))
        before = carried(before, kind)
    return [*found, True]


def carried(before: Kind | None, kind: Kind) -> Kind:
    """The kind that counts behind one more character: a mark belongs to what it stands on."""
    return before if kind == "mark" and before else kind


def folded(text: str) -> str:
    """Lower case, one character for each: the same for a text and for the pieces of it."""
    lower = (character.lower() for character in text)
    # "İ" alone would become two characters; it stays.
    return "".join(new if len(new) == 1 else old for old, new in zip(text, lower, strict=True))


def marked(text: str, *, fold_case: bool = True) -> bytes:
    """The UTF-8 of a text with the byte `BOUNDARY` at every boundary."""
    spelled = folded(text) if fold_case else text
    pieces = [
        (BOUNDARY if here else b"") + character.encode()
        for here, character in zip(boundaries(text), spelled, strict=False)
    ]
    return b"".join(pieces) + BOUNDARY
