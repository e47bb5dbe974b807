"""Prompt compression: keep the words of a text that count most, in their order.

Given scores s_1..s_n of the n words, round(n·k/100) of them are kept:

    top       those of the largest scores
    bottom    those of the smallest, the control that a useful score must beat
    random    any, the control that says what dropping words costs by itself

Scores of tokens become scores of words in two steps: they are min-max normalised within their
sentence, so that no sentence outweighs another, and the pieces of a word are summed, which favours
long words (`reduce` has the alternatives).

    kept = keep_top_percent(words(text), scores, 80)
    join(text, words(text), kept)

Source: FrugalPrompt: Reducing Contextual Overhead in LLMs via Token Attribution (arXiv 2510.16439).
Protected words (`tokenry.text.sense` knows some that should be), and texts in scripts without
spaces, whose words are single characters here, are ours, and so is keeping the line breaks of the
text where the paper joins by spaces.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor

from tokenry.core.checks import in_range
from tokenry.core.errors import InputError, ShapeError, UnknownNameError
from tokenry.text.word_boundaries import kind_of

Span = tuple[int, int]
"""First character of a stretch of text, and the first one behind it."""
Mode = Literal["top", "bottom", "random"]
Reduce = Literal["sum", "mean", "max"]

# The end of a sentence: a mark, whatever closes behind it, and space; a mark of scripts that write
# no spaces; or a line break.
SENTENCE_END = re.compile(r"""[.!?…]+["'”’»)\]]*(?=\s)|[。！？]+[」』”’）]*|\n+""")


def keep_top_percent(
    items: Sequence[object],
    scores: Tensor | Sequence[float],
    percent: float,
    mode: Mode = "top",
    protect: Sequence[bool] | None = None,
    generator: torch.Generator | None = None,
) -> list[int]:
    """The positions of the items that are kept, in increasing order.

    percent: k, between 0 and 100; round(n·k/100) of the n items are kept, halves to the even
    number. Of equal scores the earlier counts as larger, so that "top" at k and "bottom" at 100 - k
    share the items out between them wherever n·k/100 is no half. protect: items that stay in any
    case; they come first in the count, and go beyond it when they are more. generator: of "random".
    """
    in_range("percent", percent, "[0, 100]")
    if mode not in get_args(Mode):
        raise UnknownNameError("mode", mode, get_args(Mode))
    values = torch.as_tensor(scores, dtype=torch.float64).detach().cpu()
    if values.shape != (len(items),):
        raise ShapeError(f"{len(items)} items need as many scores, got {list(values.shape)}")
    if values.isnan().any():
        raise InputError("a score is NaN: words cannot be ranked by it")
    if mode == "random":
        order = torch.randperm(len(items), generator=generator)
    else:
        order = values.argsort(descending=True, stable=True)
        order = order.flip(0) if mode == "bottom" else order
    count = round(len(items) * percent / 100)
    if protect is not None:
        if len(protect) != len(items):
            raise ShapeError(f"{len(items)} items need as many flags, got {len(protect)}")
        safe = torch.as_tensor(protect, dtype=torch.bool)
        order = torch.cat([order[safe[order]], order[~safe[order]]])
        count = max(count, int(safe.sum()))
    return sorted(order[:count].tolist())


def normalise_by_sentence(scores: Tensor, sentence: Sequence[int]) -> Tensor:
    """(s - min) / (max - min) within each sentence, [T]; ½ where a sentence's scores are all equal.

    sentence: the number of each token's sentence.
    """
    if scores.shape != (len(sentence),):
        raise ShapeError(f"{len(sentence)} tokens need as many scores, got {list(scores.shape)}")
    number = torch.as_tensor(sentence, dtype=torch.long, device=scores.device)
    scores = scores.float()
    if not len(scores):
        return scores
    empty = scores.new_zeros(int(number.max()) + 1)
    low = empty.scatter_reduce(0, number, scores, "amin", include_self=False)[number]
    high = empty.scatter_reduce(0, number, scores, "amax", include_self=False)[number]
    flat = torch.full_like(scores, 0.5)
    return torch.where(high > low, (scores - low) / (high - low).clamp_min(1e-30), flat)


def merge_subwords(
    scores: Tensor, word_ids: Sequence[int | None], reduce: Reduce = "sum", count: int | None = None
) -> Tensor:
    """Scores of words [W] from those of their pieces [T].

    word_ids: the word of each piece; None for one that belongs to no word, such as an end mark.
    count: W, by default one more than the largest id. A word without pieces gets 0.
    """
    if reduce not in get_args(Reduce):
        raise UnknownNameError("reduction", reduce, get_args(Reduce))
    if scores.shape != (len(word_ids),):
        raise ShapeError(f"{len(word_ids)} pieces need as many scores, got {list(scores.shape)}")
    inside = [place for place, word in enumerate(word_ids) if word is not None]
    ids = torch.tensor([word_ids[place] for place in inside], dtype=torch.long)
    words_of_all = count if count is not None else int(ids.max()) + 1 if len(ids) else 0
    how = {"sum": "sum", "mean": "mean", "max": "amax"}[reduce]
    empty = scores.new_zeros(words_of_all)
    ids = ids.to(scores.device)
    return empty.scatter_reduce(0, ids, scores[inside], how, include_self=False)


def words(text: str) -> list[Span]:
    """The words of a text: stretches without white space, cut into characters where a script
    writes no spaces between words."""
    found = []
    for match in re.finditer(r"\S+", text):
        kinds = [kind_of(character) for character in match[0]]
        cuts = [0]
        for place, (before, after) in enumerate(pairwise(kinds), start=1):
            if after != "mark" and "unspaced" in (before, after):
                cuts.append(place)
        start = match.start()
        found += [(start + a, start + b) for a, b in pairwise([*cuts, len(kinds)])]
    return found


def sentences(text: str) -> list[Span]:
    """The sentences of a text, which together are all of it."""
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    edges = sorted({0, *ends, len(text)})
    return [(a, b) for a, b in pairwise(edges)]


def join(text: str, spans: Sequence[Span], kept: Sequence[int]) -> str:
    """The kept words, between two of them the widest white space that stood there.

    Words that stood apart stay apart, and a line break survives the words around it. All words
    give the text itself, none the empty text.
    """
    if not kept:
        return ""
    edges = [0, *(edge for span in spans for edge in span), len(text)]
    gaps = [text[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True)]
    pieces = [gaps[0]]
    for place, word in enumerate(kept):
        if place:
            crossed = gaps[kept[place - 1] + 1 : word + 1]
            pieces.append(max(crossed, key=lambda gap: (gap.count("\n"), len(gap))))
        start, end = spans[word]
        pieces.append(text[start:end])
    return "".join([*pieces, gaps[-1]])


def touched(spans: Sequence[Span], place: Span) -> list[int]:
    """The words that the characters [start, end) reach into; none for white space."""
    start, end = place
    if start == end:
        return []
    first = bisect_right(spans, start, key=lambda span: span[1])
    return list(range(first, bisect_left(spans, end, key=lambda span: span[0])))
