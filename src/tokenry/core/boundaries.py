"""Boundaries: which tokens of a whole text belong to one part of it.

A text reaches the model as the tokens of the *whole* text, so its parts (prompt and completion, the
turns of a chat) are found in these tokens and never tokenized apart: apart, a tokenizer may insert
a space, append its end token, or break what it would have joined. A part is a span of characters.
Every token that reaches into a target span is a target, also one that begins before it ("Ġhello"
behind a prompt that ends in a space): such tokens are counted as `crossing`.

Tokenizers without character offsets (the slow ones) are asked for the tokens of the text up to a
border: what these share with the tokens of the whole text lies before it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from tokenry.core.errors import InputError

SPACE_MARKS = ("Ġ", "▁", " ", "Ċ", "ĉ", "\n", "\t")  # how a token's name begins with white space

CharSpan = tuple[int, int]


@dataclass(frozen=True)
class Tokens:
    """The tokens of a text. ids, target: one for each token, target True where it is to be scored.

    crossing: how many targets reach across a border of their part.
    ended: an end-of-sequence token stands behind the last target that the chat template did not
    write.
    """

    ids: list[int]
    target: list[bool]
    crossing: int = 0
    ended: bool = False

    @property
    def first(self) -> int:
        """The position of the first target: what stands before it is the prompt."""
        return self.target.index(True)

    def trimmed(self) -> Tokens:
        """Without what follows the last target."""
        end = len(self.target) - self.target[::-1].index(True)
        return replace(self, ids=self.ids[:end], target=self.target[:end])


@dataclass(frozen=True)
class Pair:
    """Completions of one prompt. prompt: the ids that all of them begin with, none of them a
    target. completions: the ids that follow, from the first token that differs or reaches across
    the boundary; target: which of them count. crossing: how many hold a part of the prompt."""

    prompt: list[int]
    completions: list[list[int]]
    target: list[list[bool]]
    crossing: int


def start_ids(tokenizer: Any) -> list[int]:
    """The ids that the tokenizer itself puts before a text, such as `<bos>`; often none."""
    ids, plain = list(tokenizer("a")["input_ids"]), encoded(tokenizer, "a")
    places = range(len(ids) - len(plain) + 1)
    return next((ids[:place] for place in places if ids[place : place + len(plain)] == plain), [])


def first_id(tokenizer: Any) -> int:
    """What an empty prompt becomes: the beginning-of-sequence token, else the end token."""
    for name in ("bos_token_id", "eos_token_id"):
        if getattr(tokenizer, name, None) is not None:
            return getattr(tokenizer, name)
    raise InputError("an empty prompt needs a tokenizer with a bos or eos token to start from")


def encoded(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text, with nothing put before or behind them. Raises InputError."""
    check_characters(text)
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def prompt_ids(tokenizer: Any, text: str, *, templated: bool = False) -> list[int]:
    """The ids of a text that is to be continued: the tokenizer's start tokens once, no end token.

    templated: a chat template wrote the text, start tokens included. An empty text becomes the
    beginning-of-sequence token.
    """
    ids = encoded(tokenizer, text) if text else []
    return (ids if templated else _started(tokenizer, ids)) or [first_id(tokenizer)]


def part_tokens(
    tokenizer: Any, text: str, spans: Sequence[CharSpan], *, templated: bool = False
) -> Tokens:
    """The tokens of a text whose `spans` of characters are the targets.

    templated: a chat template wrote the text. Its start tokens are then what it wrote, and an end
    token is put behind the last target only if the template wrote none there; a plain text gets
    the tokenizer's start tokens unless it carries them. The first token of all is never a target.
    Raises InputError when no token is left to score.
    """
    ids, cuts = _cuts(tokenizer, text, sorted({border for span in spans for border in span}))
    target = [False] * len(ids)
    crossing = 0
    for start, end in spans:
        if start >= end:
            continue
        first, across, _ = cuts[start]
        last, over, outside = cuts[end]
        target[first : last + over] = [True] * (last + over - first)
        crossing += across + (over and bool(outside.strip()) and not (across and first == last))
    if not templated:
        started = _started(tokenizer, ids)
        target = [False] * (len(started) - len(ids)) + target
        ids = started
    if target[:1] == [True]:
        target[0] = False
    if not any(target):
        raise InputError("no token is left to score: the part that counts is empty")
    tokens = Tokens(ids, target, crossing)
    return _closed(tokenizer, tokens, text, spans) if templated else tokens


def pair_tokens(tokenizer: Any, prompt: str, completion: str, *, end: bool = True) -> Tokens:
    """The tokens of two texts, the second one's being the targets.

    end: behind them stands one end-of-sequence token, also when the text carries it already.
    An empty prompt, or one that has no token of its own, becomes the beginning-of-sequence token.
    """
    text = prompt + completion
    ids, cuts = _cuts(tokenizer, text, [len(prompt)])
    first, crossing, _ = cuts[len(prompt)]
    started = _started(tokenizer, ids)
    first = max(first + len(started) - len(ids), len(start_ids(tokenizer)))
    if first == 0:
        started, first = [first_id(tokenizer), *started], 1
    eos = tokenizer.eos_token_id
    open_ended = started[-1] != eos or first == len(started)
    ids = [*started, eos] if end and eos is not None and open_ended else started
    if first == len(ids):
        raise InputError("the completion has no tokens, so there is nothing to score")
    return Tokens(ids, [False] * first + [True] * (len(ids) - first), int(crossing))


def text_tokens(tokenizer: Any, text: str, *, end: bool = True) -> Tokens:
    """The tokens of a text, all of them targets but the first (the start token, if there is one).

    end: behind it stands one end-of-sequence token, also when the text carries it already.
    """
    ids = _started(tokenizer, encoded(tokenizer, text))
    eos = tokenizer.eos_token_id
    ids = [*ids, eos] if end and eos is not None and ids[-1:] != [eos] else ids
    if len(ids) < 2:
        raise InputError("no token is left to score: the text has a single token, or none")
    return Tokens(ids, [False] + [True] * (len(ids) - 1))


def joined_pair(sides: Sequence[Tokens]) -> Pair:
    """Completions of the same prompt: what all of them share before their first target is the
    prompt, so that both are scored behind the same tokens and spell their whole difference."""
    sides = [side.trimmed() for side in sides]
    prompt = common_prefix([side.ids[: side.first] for side in sides])
    if not prompt:
        raise InputError("the completions share no token of the prompt")
    size = len(prompt)
    return Pair(
        prompt,
        [side.ids[size:] for side in sides],
        [[True] * (side.first - size) + side.target[side.first :] for side in sides],
        sum(side.first - size + side.crossing for side in sides),
    )


def common_prefix(rows: Sequence[Any]) -> Any:
    """What all the sequences begin with."""
    shortest = min(rows, key=len)
    for place, value in enumerate(shortest):
        if any(row[place] != value for row in rows):
            return shortest[:place]
    return shortest


def check_characters(text: str) -> None:
    """Raise InputError for half a surrogate pair, which is no character and has no tokens."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"the text has half a character (lone surrogate U+{ord(text[error.start]):04X}) at "
            f"character {error.start}; repair or remove it"
        ) from None


def _started(tokenizer: Any, ids: list[int]) -> list[int]:
    start = start_ids(tokenizer)
    return ids if ids[: len(start)] == start else [*start, *ids]


def _closed(tokenizer: Any, tokens: Tokens, text: str, spans: Sequence[CharSpan]) -> Tokens:
    """With an end token behind the last target, unless the template wrote one there or goes on."""
    last = len(tokens.target) - 1 - tokens.target[::-1].index(True)
    closes = any(_is_special(tokenizer, token) for token in tokens.ids[last : last + 2])
    if closes or text[max(end for _, end in spans) :].strip() or tokenizer.eos_token_id is None:
        return tokens
    return Tokens(
        [*tokens.ids[: last + 1], tokenizer.eos_token_id],
        [*tokens.target[: last + 1], True],
        tokens.crossing,
        ended=True,
    )


Cut = tuple[int, bool, str]  # first token beyond a border, it begins before, its part behind


def _cuts(tokenizer: Any, text: str, borders: Sequence[int]) -> tuple[list[int], dict[int, Cut]]:
    """The ids of a text, and for each border the first token that reaches beyond it."""
    check_characters(text)
    if not getattr(tokenizer, "is_fast", False):
        ids = encoded(tokenizer, text)
        cuts = {}
        for border in borders:
            before = encoded(tokenizer, text[:border])
            shared = len(common_prefix([before, ids]))
            cuts[border] = (shared, shared < min(len(before), len(ids)), "?")
        return ids, cuts
    whole = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids = list(whole["input_ids"])
    offsets = whole["offset_mapping"]
    ends = list(accumulate((end for _, end in offsets), max))
    cuts = {}
    for border in borders:
        place = bisect_right(ends, border)
        if place == len(ids):
            cuts[border] = (place, False, "")
            continue
        # Offsets may leave out the white space that a token begins with.
        written, covered = offsets[place][0], ends[place - 1] if place else 0
        trimmed = covered < border <= written and _begins_with_space(tokenizer, ids[place])
        cuts[border] = (place, written < border or trimmed, text[border : ends[place]])
    return ids, cuts


def _is_special(tokenizer: Any, token: int) -> bool:
    return bool(tokenizer.decode([token])) and not tokenizer.decode(
        [token], skip_special_tokens=True
    )


def _begins_with_space(tokenizer: Any, token: int) -> bool:
    return str(tokenizer.convert_ids_to_tokens(token)).startswith(SPACE_MARKS)
