"""Sentence spans: texts that consist of words, not of the signs between them.

A text is cut into spans by the ends of its sentences (. ! ? … and their kind, line breaks). A point
behind a digit is a decimal point or part of a date, and ends nothing. The rules:

    a span that has digits or signs has a word too, before its end and the text's
    between two words stand at most LONGEST_GAP characters, a sign counting as SIGN_SIZE of them
    control characters, unassigned ones and letters in disguise (ᵃ, ａ, 𝐚) do not occur

They are an automaton over the classes of characters, with few states, that runs beside a word
machine. A letter is allowed in every state, so that it never runs into a dead end.
"""

import unicodedata
from functools import lru_cache
from itertools import groupby

from tokenry.decode.constraints.spelling import code_points_after, span_after

LONGEST_GAP = 32
SIGN_SIZE = 4
LETTER, SPACE, DIGIT, POINT, END, SIGN, NEVER = "L 0.!*X"
SENTENCE_ENDS = "!?…。！？؟।\n\r\u2028\u2029"
DISGUISES = ("<font>", "<super>", "<sub>", "<wide>", "<narrow>", "<circle>", "<square>", "<small>")

# What a span holds so far: a word; nothing, as one has just ended; signs, but no word. Behind a
# digit a point ends nothing.
WORD, WORD_DIGIT, NOTHING, SIGNS, SIGNS_DIGIT = range(5)
DEAD = -1
FREE = WORD  # the state after a word; a state is the span's content + 5 · (the gap since)
FRESH = NOTHING


@lru_cache(maxsize=1 << 16)
def class_of(character: str) -> str:
    """The class of a character. Marks and quotation marks count as white space does."""
    category = unicodedata.category(character)
    if category[0] == "L":
        disguised = unicodedata.decomposition(character).startswith(DISGUISES)
        return NEVER if disguised else LETTER
    if character in SENTENCE_ENDS:
        return END
    if character.isspace() or category[0] == "M" or category in ("Pe", "Pf", "Pi", "Cf"):
        return SPACE
    if category[0] == "C":
        return NEVER
    if character == ".":
        return POINT
    return DIGIT if category == "Nd" else SPACE if character in "'\"" else SIGN


def classes(text: str) -> str:
    """The classes of a text's characters, a run of letters as one."""
    runs = groupby(map(class_of, text))
    return "".join(kind if kind == LETTER else "".join(run) for kind, run in runs)


@lru_cache(maxsize=1 << 14)
def step(state: int, kind: str) -> int:
    """The state after a character of class `kind`."""
    if state == DEAD or kind == NEVER:
        return DEAD
    if kind == LETTER:
        return FREE
    gap, span = divmod(state, 5)
    gap += SIGN_SIZE if kind == SIGN else 1
    if gap > LONGEST_GAP:
        return DEAD
    wordless = span in (SIGNS, SIGNS_DIGIT)
    if kind == POINT:
        kind = SIGN if span in (WORD_DIGIT, SIGNS_DIGIT) else END
    if kind == END:
        if wordless:
            return DEAD
        span = NOTHING
    elif kind == DIGIT:
        span = WORD_DIGIT if span in (WORD, WORD_DIGIT) else SIGNS_DIGIT
    elif kind == SIGN:
        span = WORD if span in (WORD, WORD_DIGIT) else SIGNS
    return span + 5 * gap


def read(state: int, kinds: str) -> int:
    """The state after characters of these classes."""
    for kind in kinds:
        state = step(state, kind)
        if state == DEAD:
            break
    return state


def may_end(state: int) -> bool:
    """Whether a text may end in this state."""
    return state != DEAD and state % 5 not in (SIGNS, SIGNS_DIGIT)


def after_prompt(text: str) -> int:
    """The state of the empty text behind a prompt, which is not judged itself."""
    state = FRESH
    for kind in classes(text):
        moved = step(state % 5, kind)
        state = FRESH if moved == DEAD else moved
    # signs that the prompt has left open are not for the text to make good
    span = state % 5
    return {SIGNS: NOTHING, SIGNS_DIGIT: WORD_DIGIT}.get(span, span)


@lru_cache(maxsize=1 << 10)
def classes_after(tail: bytes) -> frozenset[str]:
    """The classes of the characters that are no letters and whose UTF-8 begins with `tail`."""
    low, high = span_after(tail)
    points = code_points_after(tail)
    surrogates = max(0, min(high, 0xE000) - max(low, 0xD800))
    # Code points that are not looked at are no letters; where all are, none may be promised.
    classes = {NEVER} if len(points) + surrogates < high - low else set()
    for character in map(chr, points):
        if unicodedata.category(character)[0] not in "LM":
            classes.add(class_of(character))
    return frozenset(classes)
