"""Character spans of a text -> labels of its tokens: weights of fields, masks of names.

A token covers the characters [start, end) that a fast tokenizer reports for it
(`return_offsets_mapping=True`). It belongs to a span when they share at least one character: a
token that straddles the border of a name belongs to the name. Tokens that cover no character (an
end-of-sequence mark) belong to no span.

    spans = find_spans(text, ["numpy", "numpy_financial"])        # longest match, every occurrence
    token_labels(offsets, [(a, b, 1.2) for a, b, _ in spans], default=1.0, rule="max")
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Literal, TypeVar, get_args

import numpy as np

from tokenry.core.errors import InputError, UnknownNameError
from tokenry.text.word_boundaries import boundaries

Label = TypeVar("Label")
Offsets = Sequence[tuple[int, int]]
Rule = Literal["last", "first", "max"]


def token_labels(
    offsets: Offsets,
    spans: Iterable[tuple[int, int, Label]],
    default: Label,
    *,
    rule: Rule = "last",
) -> list[Label]:
    """The label of each token: that of the spans it overlaps, `default` where there is none.

    offsets: (start, end) of each token, in characters. spans: (start, end, label). rule: which span
    speaks for a token that overlaps several: the one given "last" or "first", or the one with the
    greatest label ("max"; the default does not compete).
    """
    if rule not in get_args(Rule):
        raise UnknownNameError("overlap rule", rule, get_args(Rule))
    edges = np.asarray([_checked(pair, "token") for pair in offsets], dtype=np.int64).reshape(-1, 2)
    starts, ends = edges[:, 0], edges[:, 1]
    found: dict[int, Label] = {}
    for first, last, label in spans:
        _checked((first, last), "span")
        # the characters shared are [max of starts, min of ends): at least one
        shared = np.minimum(ends, last) - np.maximum(starts, first)
        for token in np.flatnonzero(shared > 0).tolist():
            if token not in found or rule == "last":
                found[token] = label
            elif rule == "max":
                found[token] = max(found[token], label)  # type: ignore[type-var]
    return [found.get(token, default) for token in range(len(edges))]


def find_spans(
    text: str, needles: Iterable[str], *, whole_words: bool = False
) -> list[tuple[int, int, str]]:
    """Every occurrence of the needles in the text, (start, end, needle), in the text's order.

    At each place the longest needle counts, and an occurrence that lies inside another one does
    not: "numpy" is not found in "numpy_financial" when both are needles. Occurrences may overlap
    otherwise. whole_words: only between word boundaries (`text.word_boundaries`), so that "re" is
    not found in "here", but "re(" is in "re(x", and "京" in "東京", which has no spaces.
    """
    longest_first = sorted(set(needles), key=lambda needle: (-len(needle), needle))
    if "" in longest_first:
        raise InputError("an empty text occurs everywhere: leave empty needles out")
    if not longest_first:
        return []
    allowed = boundaries(text) if whole_words else [True] * (len(text) + 1)
    anywhere = "|".join(re.escape(needle) for needle in longest_first)
    found, reached = [], 0
    for match in re.finditer(f"(?={anywhere})", text):  # a lookahead, to meet overlapping ones
        start = match.start()
        for needle in longest_first if allowed[start] else ():
            end = start + len(needle)
            if text.startswith(needle, start) and allowed[end]:
                if end > reached:
                    found.append((start, end, needle))
                    reached = end
                break
    return found


def _checked(pair: tuple[int, int], what: str) -> tuple[int, int]:
    start, end = pair
    if not 0 <= start <= end:
        raise InputError(f"a {what} runs from character {start} to {end}; need 0 <= start <= end")
    return start, end
