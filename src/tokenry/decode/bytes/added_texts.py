"""Added tokens, which a tokenizer cuts out of a text beforehand: the longest at each position.

So a text that has such a token inside may not be spelled by others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Context = tuple[int, ...]


class AddedTexts:
    """The added tokens of a vocabulary that are not special, such as line breaks of Gemma.

    Args:
        pieces: the bytes of every id.
        texts: added id -> the bytes that it stands for.

    Attributes:
        mask: [V] bool, which ids are added.
        longest: bytes of the longest text, 0 without any.
    """

    def __init__(self, pieces: Sequence[bytes], texts: Mapping[int, bytes]):
        self.pieces, self.texts = pieces, dict(texts)
        self.mask = np.zeros(len(pieces), dtype=bool)
        self.mask[list(texts)] = True
        longest_first = sorted(self.texts.values(), key=len, reverse=True)
        self.longest = max(map(len, longest_first), default=0)
        self._ends: dict[bytes, list[bytes]] = {}  # beginning of an added text -> its ends
        for text in longest_first:
            for cut in range(1, len(text)):
                self._ends.setdefault(text[:cut], []).append(text[cut:])

    def __contains__(self, token: object) -> bool:
        return token in self.texts

    def containing(self) -> NDArray[np.bool_]:
        """[V] bool: the other tokens that have an added text inside, which are never written."""
        inside = np.zeros(len(self.pieces), dtype=bool)
        if self.texts:
            longest_first = sorted(self.texts.values(), key=len, reverse=True)
            any_text = re.compile(b"|".join(map(re.escape, longest_first)))
            for token, piece in enumerate(self.pieces):
                inside[token] = token not in self and any_text.search(piece) is not None
        return inside

    def after(self, context: Context) -> Context:
        """The tokens behind the last added one."""
        for start in range(len(context), 0, -1):
            if context[start - 1] in self:
                return context[start:]
        return context

    def forbidden_ends(self, context: Context) -> Iterator[bytes]:
        """What must not follow: the ends of added texts that have begun in the tokens so far.

        A text that begins inside an added token has been cut out with it; one that begins where
        that token does is longer, and would have been taken instead.
        """
        # bytes from the end -> may an added text begin there
        starts: dict[int, bool] = {}
        passed = 0
        for token in reversed(context):
            piece = self.pieces[token]
            for inner in range(1, len(piece) + 1):
                starts[passed + inner] = inner == len(piece) or token not in self
            passed += len(piece)
            if passed >= self.longest:
                break
        # every tail that is the beginning of an added text forbids that text's end
        tail = b"".join(self.pieces[token] for token in context)[-self.longest :]
        for length in range(1, len(tail) + 1):
            if starts.get(length):
                yield from self._ends.get(tail[-length:], ())
