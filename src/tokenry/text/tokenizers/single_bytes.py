"""Single bytes: every token spelled out in the vocabulary's one-byte tokens.

    v -> (b_1, .. b_n)      bytes(v) = b_1 .. b_n, n = |bytes(v)|

What a model makes of its own text when no token holds more than a letter: the far end of every
method that splits tokens, and the control for what a coarse vocabulary hides. Special and added
tokens stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from tokenry.core.errors import VocabularyError
from tokenry.text.tokenizers.base import Draws, WrappedTokenizer
from tokenry.text.tokenizers.base import tokenizer as registered
from tokenry.text.vocabulary import token_bytes


@registered("single-bytes")
@dataclass(frozen=True)
class SingleBytes:
    """`SingleBytes().wrap(tokenizer)("the cat")` has seven tokens."""

    lossless: ClassVar[bool] = True
    random: ClassVar[bool] = False

    def wrap(self, tokenizer: Any) -> SpelledTokenizer:
        """`tokenizer`, its tokens spelled out. VocabularyError if a byte has no token of its own,
        or the tokens' bytes are unknown."""
        spelled = token_bytes(tokenizer)
        added = set(tokenizer.added_tokens_decoder)
        ordinary = {v: piece for v, piece in enumerate(spelled) if piece and v not in added}
        single: dict[bytes, int] = {}
        for v, piece in ordinary.items():
            if len(piece) == 1:
                single.setdefault(piece, v)
        missing = {bytes([b]) for piece in ordinary.values() for b in piece} - single.keys()
        if missing:
            raise VocabularyError(
                f"the vocabulary has no token for the byte {min(missing)!r} alone"
            )
        table = {v: [single[bytes([b])] for b in piece] for v, piece in ordinary.items()}
        return SpelledTokenizer(tokenizer, table)


@dataclass
class SpelledTokenizer(WrappedTokenizer):
    """A tokenizer with a fixed spelling of each token."""

    tokenizer: Any
    table: dict[int, list[int]] = field(repr=False)

    def expand(self, ids: Sequence[int], generator: Draws = None) -> list[int]:
        """`ids` spelled out; nothing is drawn."""
        return [piece for v in ids for piece in self.table.get(int(v), [int(v)])]
