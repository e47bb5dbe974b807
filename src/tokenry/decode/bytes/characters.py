"""Kinds of characters, as the pattern of a pre-tokenizer sees them, and unfinished characters.

Borders depend on the kinds of characters only, so tokens fall into *shapes* (the sequences of their
characters' kinds), and one token of each shape stands for all of them.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tokenry.decode.constraints.predicate import extend

SURROGATES = range(0xD800, 0xE000)  # code points that are no characters
CODE_POINTS = 0x110000
CONTRACTED = "sdmtlvreSDMTLVRE"  # letters that may follow an apostrophe: 's, 'll
LONGEST_RUN = 2  # characters of one kind that are told apart, and of digits,
LONGEST_DIGITS = 4  # which patterns cut into threes


class Shapes(NamedTuple):
    """
    Attributes:
        numbers: [V], the shape of every token.
        examples: one token of each shape.
    """

    numbers: NDArray[np.int64]
    examples: list[int]

    @classmethod
    def of(cls, pieces: Sequence[bytes], contractions: bool) -> Shapes:
        number_of: dict[str, int] = {}
        numbers, examples = np.zeros(len(pieces), dtype=np.int64), []
        for token, piece in enumerate(pieces):
            form = shape(piece, contractions)
            if form not in number_of:
                number_of[form] = len(number_of)
                examples.append(token)
            numbers[token] = number_of[form]
        return cls(numbers, examples)


def shape(piece: bytes, contractions: bool) -> str:
    """The kinds of a token's characters, long runs cut short.

    Args:
        contractions: keep the letters that could belong to one ('s, 'll) with what stands before.
    """
    decoded = extend(b"", piece)
    if decoded is None:
        return "invalid"
    text, undecided = decoded
    kinds, run = [], 0
    for position, character in enumerate(text):
        kind = character_kind(character)
        after_apostrophe = "'" in text[max(position - 2, 0) : position]
        near = (contractions and position < 2) or after_apostrophe
        if near and character in CONTRACTED:
            kind = f"<{character}>"
        run = run + 1 if kinds and kinds[-1] == kind else 0
        if run < (LONGEST_DIGITS if kind == "1" else LONGEST_RUN):
            kinds.append(kind)
    if undecided:
        kinds.append("+".join(sorted(map(character_kind, completions(undecided)))))
    return "".join(kinds)


@lru_cache(1 << 16)
def character_kind(character: str) -> str:
    """What a pre-tokenizer's pattern sees of a character."""
    if character in "'/" or character.isspace():
        return character
    category = unicodedata.category(character)
    if character.isascii() and not character.isalnum():
        return "!"
    return {"Lu": "A", "Lt": "A", "Ll": "a", "Nd": "1"}.get(category, f"<{category}>")


@lru_cache(1 << 12)
def completions(undecided: bytes) -> tuple[str, ...]:
    """One character of each kind that begins with these bytes; "" when there are none."""
    if not undecided:
        return ("",)
    of_kind: dict[str, str] = {}
    for code in range(*code_points(undecided)):
        if code not in SURROGATES:
            of_kind.setdefault(character_kind(chr(code)), chr(code))
    return tuple(of_kind.values())


def code_points(begun: bytes) -> tuple[int, int]:
    """The range of the code points whose UTF-8 begins like this (or is this)."""
    lead = begun[0]
    if lead < 0x80:
        return lead, lead + 1
    length = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
    # the lead gives 7 - length bits, every byte after it six
    value = lead & (0x7F >> length)
    for byte in begun[1:]:
        value = value << 6 | byte & 0x3F
    shift = 6 * (length - len(begun))
    smallest = {2: 0x80, 3: 0x800, 4: 0x10000}[length]  # below it UTF-8 takes fewer bytes
    return max(value << shift, smallest), min((value + 1) << shift, CODE_POINTS)
