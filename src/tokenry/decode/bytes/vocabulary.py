"""A vocabulary in the order of its bytes: every prefix is one range, found by bisection.

Of the tokens whose bytes begin with a given prefix, those that are equal to it come first in the
range, and the others are sorted by the byte that follows. So the probabilities of the next byte are
one weighted count over a range, without a loop over the vocabulary.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class ByteVocabulary:
    """The tokens that spell something; positions below are places in the sorted order.

    Args:
        pieces: the bytes of every id, b"" for tokens that spell nothing.

    Attributes:
        ids: the id at each position.
    """

    def __init__(self, pieces: Sequence[bytes]):
        self.pieces = list(pieces)
        spelled = [token for token, piece in enumerate(self.pieces) if piece]
        spelled.sort(key=self.pieces.__getitem__)
        self.ids: NDArray[np.int64] = np.array(spelled, dtype=np.int64)
        self.sorted = [self.pieces[token] for token in spelled]
        self.lengths = np.array([len(piece) for piece in self.sorted], dtype=np.int64)
        self.longest = int(self.lengths.max(initial=0))
        self._starts = np.cumsum(self.lengths) - self.lengths
        self._flat = np.frombuffer(b"".join(self.sorted), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.ids)

    def range(self, prefix: bytes, low: int = 0, high: int | None = None) -> tuple[int, int]:
        """Positions [low, high) of the tokens that begin with `prefix`, within given bounds."""
        high = len(self) if high is None else high
        low = bisect_left(self.sorted, prefix, low, high)
        after = prefix.rstrip(b"\xff")
        if after:
            high = bisect_left(self.sorted, after[:-1] + bytes([after[-1] + 1]), low, high)
        return low, high

    def spans(self, data: bytes, position: int) -> bool:
        """Whether a token that reaches beyond `place` begins `data`, or is begun by all of it."""
        low, high = self.range(data[: position + 1])
        return low < high and any(
            data.startswith(piece) or piece.startswith(data) for piece in self.sorted[low:high]
        )

    def exact(self, depth: int, low: int, high: int) -> int:
        """The end of the tokens in a range of common prefix that have just its `depth` bytes."""
        while low < high and self.lengths[low] == depth:
            low += 1
        return low

    def byte_masses(self, probs: NDArray[np.float64], depth: int, low: int) -> NDArray[np.float64]:
        """float64 [256]: sum of the probabilities `probs` of the tokens from `low` on, by their
        byte at `depth`; they are all longer than that."""
        column = self._flat[self._starts[low : low + len(probs)] + depth]
        return np.bincount(column, weights=probs, minlength=256).astype(np.float64)
