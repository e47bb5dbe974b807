"""FrugalPrompt: a prompt's most important words in their order, the rest left out.

    text -> sentences -> score of every token at the end of its sentence (at [CLS] of an encoder)
         -> min-max within the sentence -> sum over the tokens of a word
         -> the round(n·k/100) words of the largest scores, in order

    model, tokenizer = tokenry.load("smollm2")
    FrugalPrompt(GlobEnc(), percent=80)(model, tokenizer, text).text

A sentence is read between the tokenizer's own marks of beginning and end, whose scores are dropped;
a decoder is asked at the end mark, which alone has seen the whole sentence. A sentence longer than
the scorer's limit is read in pieces.

Source: FrugalPrompt: Reducing Contextual Overhead in LLMs via Token Attribution (arXiv 2510.16439).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, get_args

import torch
from torch import Tensor

from tokenry.core.checks import one_of, within
from tokenry.core.errors import InputError, ModelError
from tokenry.model import compat
from tokenry.text.compression import (
    Mode,
    Reduce,
    Span,
    join,
    keep_top_percent,
    merge_subwords,
    normalise_by_sentence,
    sentences,
    touched,
    words,
)
from tokenry.text.sense import KEPT, KINDS, Kind, senses


class Attribution(Protocol):
    """Scores the tokens `ids` [T] of one text by what they add at `position`: [T]."""

    @property
    def max_tokens(self) -> int: ...
    def __call__(self, model: Any, ids: Tensor, position: int = -1) -> Tensor: ...


@dataclass(frozen=True)
class Compressed:
    """A shorter text and how it came about: spans and scores of all words, and which are kept.

    Args:
        dropped: words that are left out although the text may say something else without them, by
            their numbers, each with its kind (`tokenry.text.sense`).
    """

    text: str
    spans: list[Span]
    scores: list[float]
    kept: list[int]
    dropped: Mapping[int, Kind] = field(default_factory=dict)


@dataclass(frozen=True)
class FrugalPrompt:
    """Compresses texts to a share of their words.

    Args:
        scorer: what tells how important a token is; None for mode "random", which asks no model.
        percent: of the words that are kept, 0 to 100; the paper tries 80, 60 and 50.
        mode: "top", or one of the controls.
        reduce: pieces of words to words; the paper's "sum" favours long words.
        protect: words that touch a match of this regular expression always stay.
        sense: kinds of words that always stay, () for the paper's method; by default negations,
            numbers, units and names, as "did not rise" without "not" is no shorter form of it.
        seed: of "random".
    """

    scorer: Attribution | None
    percent: float = 80
    mode: Mode = "top"
    reduce: Reduce = "sum"
    protect: str | None = None
    sense: tuple[Kind, ...] = KEPT
    seed: int = 0

    def __post_init__(self) -> None:
        within(self, "[0, 100]", "percent")
        within(self, "[-9e18, 9e18]", "seed", integer=True)
        one_of("FrugalPrompt.mode", self.mode, get_args(Mode))
        one_of("FrugalPrompt.reduce", self.reduce, get_args(Reduce))
        for kind in self.sense:
            one_of("FrugalPrompt.sense", kind, KINDS)

    def __call__(self, model: Any, tokenizer: Any, text: str) -> Compressed:
        """The shorter text. model, tokenizer: may be None without a scorer."""
        spans = words(text)
        if not spans:
            raise InputError("there is nothing to compress in an empty text")
        if self.scorer is None:
            if self.mode != "random":
                raise InputError(f'without a scorer the mode must be "random", not "{self.mode}"')
            scores = torch.zeros(len(spans))
        else:
            scores = word_scores(self.scorer, model, tokenizer, text, spans, self.reduce)
        kinds = senses(text, spans)
        protected = [kind in self.sense for kind in kinds]
        if self.protect is not None:
            by_pattern = matched(text, spans, self.protect)
            protected = [a or b for a, b in zip(protected, by_pattern, strict=True)]
        generator = torch.Generator().manual_seed(self.seed)
        kept = keep_top_percent(spans, scores, self.percent, self.mode, protected, generator)
        left_out = set(range(len(spans))) - set(kept)
        dropped: dict[int, Kind] = {
            n: kind for n, kind in enumerate(kinds) if kind is not None and n in left_out
        }
        return Compressed(join(text, spans, kept), spans, scores.tolist(), kept, dropped)


def word_scores(
    scorer: Attribution,
    model: Any,
    tokenizer: Any,
    text: str,
    spans: Sequence[Span],
    reduce: Reduce = "sum",
) -> Tensor:
    """Scores [W] of the words `spans` of a text."""
    scores: list[Tensor] = []
    token_spans: list[Span] = []
    sentence_of: list[int] = []
    for number, (start, end) in enumerate(sentences(text)):
        sentence = text[start:end].rstrip()  # of which nothing is left of a line break alone
        for ids, offsets in pieces(tokenizer, sentence, capacity(scorer, model)):
            scores.append(framed_scores(scorer, model, tokenizer, ids))
            token_spans += [(start + a, start + b) for a, b in offsets]
            sentence_of += [number] * len(ids)
    normalised = normalise_by_sentence(torch.cat(scores), sentence_of)
    # A token that reaches into several words gives each of them an equal share.
    owners = [touched(spans, span) for span in token_spans]
    shares = [
        float(normalised[token]) / len(those) for token, those in enumerate(owners) for _ in those
    ]
    ids_of_words = [word for those in owners for word in those]
    return merge_subwords(torch.tensor(shares), ids_of_words, reduce, len(spans))


def pieces(tokenizer: Any, text: str, limit: int) -> Iterator[tuple[list[int], list[Span]]]:
    """Ids and character spans of a text's tokens, at most `limit` at a time."""
    if not tokenizer.is_fast:
        raise ModelError("compression needs a fast tokenizer, which says where its tokens stand")
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    for start in range(0, len(ids), limit):
        yield ids[start : start + limit], offsets[start : start + limit]


def framed_scores(scorer: Attribution, model: Any, tokenizer: Any, ids: list[int]) -> Tensor:
    """Scores [T] of tokens read between the marks that the tokenizer has, on the CPU."""
    first = [tokenizer.cls_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id]
    last = [tokenizer.sep_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id]
    before = [mark for mark in first if mark is not None][:1]
    behind = [mark for mark in last if mark is not None][:1]
    position = 0 if tokenizer.cls_token_id is not None else len(before) + len(ids + behind) - 1
    framed = scorer(model, torch.tensor([*before, *ids, *behind]), position)
    return framed[len(before) : len(before) + len(ids)].float().cpu()


def capacity(scorer: Attribution, model: Any) -> int:
    """How many tokens of text fit between the marks."""
    window = compat.window(compat.unwrap(model)) or scorer.max_tokens
    return max(1, min(scorer.max_tokens, window) - 2)


def matched(text: str, spans: Sequence[Span], pattern: str) -> list[bool]:
    """Which words share a character with a match of a regular expression."""
    try:
        spans_matched = [match.span() for match in re.finditer(pattern, text)]
    except re.error as error:
        raise InputError(f"{pattern!r} is no regular expression: {error}") from None
    flags = [False] * len(spans)
    for span in spans_matched:
        for word in touched(spans, span):
            flags[word] = True
    return flags
