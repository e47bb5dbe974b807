"""Positions of every n-gram of a text that goes on."""

from __future__ import annotations

from collections.abc import Sequence


class NGramPositions:
    """The positions of a text's n-grams, of several lengths.

    An n-gram counts once something follows it, so the end of the text is never its own match.
    """

    def __init__(self, text: Sequence[int], lengths: Sequence[int]):
        self.text: list[int] = []
        self.lengths = sorted(lengths, reverse=True)
        self.positions: dict[tuple[int, ...], list[int]] = {}  # n-gram -> positions after it
        self.extend(text)

    def extend(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            for length in self.lengths:
                if len(self.text) >= length:
                    gram = tuple(self.text[-length:])
                    self.positions.setdefault(gram, []).append(len(self.text))
            self.text.append(token)

    def after(self, ahead: Sequence[int] = ()) -> list[int]:
        """Positions after every occurrence of the longest n-gram at the end of text and `ahead`, in
        the text's order; none if no length occurs."""
        end = (*self.text[-self.lengths[0] :], *ahead)
        for length in self.lengths:
            if len(end) >= length and (positions := self.positions.get(tuple(end[-length:]))):
                return positions
        return []
