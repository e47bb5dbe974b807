"""Borders of pre-tokens: where a tokenizer cuts a text before any merge, and who may stand there.

Borders depend on the kinds of characters only. So the pre-tokenizer itself is asked about one token
of each shape, with the possible ends of an unfinished character and with a few texts that could
follow.

Not covered: pre-tokenizers that tell apart characters of one Unicode category outside ASCII.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenry.decode.bytes.added_texts import AddedTexts, Context
from tokenry.decode.bytes.characters import Shapes, completions, shape
from tokenry.decode.bytes.merges import MergeTable
from tokenry.decode.constraints.predicate import extend

NEVER, GLUED, APART = 0, 1, 2  # a token may not follow; if no merge crosses; whatever the merges
PROBE = "ab  c\n\n 'd 12!? x.\ty"
FOLLOWING = ("", "a", "1", "!", " ", "\n", "e", "l", "'")

Split = Callable[[str], set[int]]


class Borders:
    """How every token may follow a context, as far as pre-tokens go.

    Args:
        split: the places, in bytes, at which a text is cut.
        pieces: the bytes of every id.
        starts: [V] bool, the tokens that can begin where a character ends.
    """

    def __init__(
        self,
        split: Split,
        pieces: Sequence[bytes],
        starts: NDArray[np.bool_],
        merges: MergeTable,
        added: AddedTexts,
    ):
        self.split, self.pieces, self.starts = split, pieces, starts
        self.merges, self.added = merges, added
        self._shapes = {kept: Shapes.of(pieces, kept) for kept in (False, True)}
        self._begins_anew = not any(re.search(rb"\S ", piece) for piece in pieces)
        self._codes: dict[Any, NDArray[np.int8]] = {}

    def unsettled(self, tokens: Context) -> Context:
        """The tokens since the last border that nothing that follows can move."""
        tokens = self.added.after(tokens)
        decoded = extend(b"", b"".join(self.pieces[token] for token in tokens))
        if decoded is None or not decoded[0]:
            return tokens
        border = max(self._fixed(decoded[0]), default=0)
        position = 0
        for number, token in enumerate(tokens):
            if position == border:
                return tokens[number:]
            position += len(self.pieces[token])
        return tokens

    def codes_after(self, context: Context) -> NDArray[np.int8]:
        """int8 [V]: NEVER, GLUED or APART for every token, found with one token of each shape."""
        data = b"".join(self.pieces[token] for token in context)
        text = data.decode()
        shapes = self._shapes["'" in text[-3:]]
        # contexts of one key have the same codes
        if any(self.split(text + probe) - {len(data)} for probe in FOLLOWING):
            of_tokens = (shape(self.pieces[token], True) for token in context)
            key: Any = (tuple(of_tokens), self._joints(context))
        else:  # one pre-token, whatever follows: where its tokens part does not matter
            key = shape(data, True)
        if key not in self._codes:
            self._codes[key] = self._codes_of_shapes(context, text, shapes)
        return self._codes[key][shapes.numbers]

    def _codes_of_shapes(self, context: Context, text: str, shapes: Shapes) -> NDArray[np.int8]:
        fresh = None
        if text and not text[-1].isspace() and self._begins_anew:
            # a space begins anew, if the context may end there: "'l" only if an "l" follows
            ends = self.verdict(context, None, (" ",)) != NEVER
            fresh = self.codes_after(()) if ends else np.zeros(len(shapes.numbers), np.int8)
        codes = np.zeros(len(shapes.examples), dtype=np.int8)
        for number, token in enumerate(shapes.examples):
            if fresh is not None and self.pieces[token][:1] == b" ":
                codes[number] = APART if fresh[token] else NEVER
            elif self.starts[token]:
                codes[number] = self.verdict(context, token)
        return codes

    def verdict(
        self, context: Context, token: int | None, following: Sequence[str] | None = None
    ) -> int:
        """NEVER, GLUED or APART for `token` behind the context; None: only look at the context.

        Args:
            following: the texts that may come next; None: those that could move a border.
        """
        context = self.added.after(context)
        tokens = list(context) if token is None else [*context, token]
        if not tokens:
            return APART
        joints = [*self._joints(context), *([] if token is None or not context else [True])]
        pieces = [self.pieces[token] for token in tokens]
        decoded = extend(b"", b"".join(pieces))
        if decoded is None:
            return NEVER
        # the best that any end of the last character and any text behind it allow
        best = NEVER
        for end in completions(decoded[1]):
            text = decoded[0] + end
            for probe in _probes(text) if following is None else following:
                best = max(best, self._agreement(pieces, joints, text + probe))
                if best == APART:
                    return best
        return best

    def _agreement(self, pieces: Sequence[bytes], joints: Sequence[bool], text: str) -> int:
        """Whether the borders of `text` allow the pieces that it begins with."""
        cuts = self.split(text)
        position, last = 0, GLUED
        for number, piece in enumerate(pieces):
            if number:
                # two pieces part at a border, or because no merge joins them
                apart = position in cuts
                if not apart and not joints[number - 1]:
                    return NEVER
                last = APART if apart else GLUED
            # no border lies inside a piece
            if any(position < cut < position + len(piece) for cut in cuts):
                return NEVER
            position += len(piece)
        return APART if len(pieces) == 1 else last

    def _fixed(self, text: str) -> set[int]:
        """The borders of a text whatever follows."""
        return set.intersection(*(self.split(text + probe) for probe in FOLLOWING))

    def _joints(self, context: Context) -> tuple[bool, ...]:
        """Of adjacent tokens: whether they stay apart without a border between them."""
        return tuple(bool(self.merges.follows(a)[b]) for a, b in pairwise(context))


def splitter(tokenizer: Any) -> Split | None:
    """The places, in bytes, at which the pre-tokenizer cuts a text; None if it never does."""
    from tokenizers import Tokenizer

    # the tokenizer without its vocabulary, which is slow to read
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["model"] = {"type": "BPE", "vocab": {}, "merges": []}
    state |= {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    if state["pre_tokenizer"] is None:
        return None
    steps = state["pre_tokenizer"].get("pretokenizers", [state["pre_tokenizer"]])
    for step in steps:  # a space before the first word is dealt with where a text begins
        if "add_prefix_space" in step:
            step["add_prefix_space"] = False
        if "prepend_scheme" in step:
            step["prepend_scheme"] = "never"
    backend = Tokenizer.from_str(json.dumps(state))
    pre_tokenizer, normalizer = backend.pre_tokenizer, backend.normalizer

    @lru_cache(1 << 14)
    def split(text: str) -> set[int]:
        plain = text
        if normalizer is not None:
            normal = normalizer.normalize_str(text)
            text = normal if len(normal) == len(text) else text
        starts = [start for _, (start, _) in pre_tokenizer.pre_tokenize_str(text)]
        return {len(plain[:start].encode()) for start in starts if start}

    return split if split(PROBE) else None


def _probes(text: str) -> tuple[str, ...]:
    """Texts that could move the last border when they follow."""
    return FOLLOWING if text[-1:].isspace() or "'" in text[-2:] else ("",)
