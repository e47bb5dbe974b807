"""Two tokenizations of one text, projected on the byte boundaries that they share.

Two tokenizers cut the same bytes at different places. The finest common ground are the spans
between consecutive boundaries that both have: every span is a whole number of tokens on either
side, no span can be split further, and a per-token quantity that adds up along the text, such as a
log-probability, has an exact value on each span.

Tokens without bytes (a beginning-of-sequence mark, say) belong to the span before them, and at the
start of the text to the first one.

SentencePiece tokenizers such as Llama 2's begin every text with a space that is not in it ("▁The").
When the bytes of one side are those of the other after a single leading space, that space is taken
off its first token, and byte positions count in the text without it. The first span then compares
p(" The") with p("The"): the right comparison, since the added space is certain.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tokenry.core.errors import InputError, ShapeError

Segmentation = Sequence[bytes] | Sequence[int] | np.ndarray | Tensor


class Span(NamedTuple):
    """Tokens a_start..a_end of one side and b_start..b_end of the other cover the same bytes."""

    a_start: int
    a_end: int
    b_start: int
    b_end: int
    byte_start: int
    byte_end: int


def shared_spans(a: Segmentation, b: Segmentation) -> list[Span]:
    """The minimal spans on whose ends both segmentations have a boundary, in the text's order.

    Each side is its tokens' bytes (as from `text.vocabulary.token_bytes`) or their lengths in
    bytes. Together the spans cover the text and all tokens; a text of no bytes has none. Raises
    InputError when the two sides are not the same text (with lengths: not the same length), as
    happens when a tokenizer normalises its input.
    """
    lengths_a, lengths_b = _lengths(a, b)
    ends_a, ends_b = lengths_a.cumsum(), lengths_b.cumsum()
    shared = np.intersect1d(ends_a, ends_b)
    shared = shared[shared > 0]
    after_a, after_b = (np.searchsorted(ends, shared, side="right") for ends in (ends_a, ends_b))

    def starts(ends: np.ndarray) -> np.ndarray:
        return np.concatenate([[0], ends])[:-1].astype(int)

    columns = [starts(after_a), after_a, starts(after_b), after_b, starts(shared), shared]
    return [Span(*row) for row in np.stack(columns, axis=1).tolist()]


def project(values: Tensor, spans: Sequence[Span], side: Literal["a", "b"]) -> Tensor:
    """Sum one side's per-token values [..., T] over each span -> [..., S]; differentiable."""
    if side not in ("a", "b"):
        raise InputError(f"side must be 'a' or 'b', got {side!r}")
    start, end = (0, 1) if side == "a" else (2, 3)
    tokens = spans[-1][end] if spans else 0
    if values.shape[-1:] != (tokens,):
        raise ShapeError(
            f"the spans cover {tokens} tokens of side {side}, the values are {list(values.shape)}"
        )
    counts = torch.tensor([span[end] - span[start] for span in spans], dtype=torch.long)
    owner = torch.repeat_interleave(torch.arange(len(spans)), counts).to(values.device)  # [T]
    sums = values.new_zeros(*values.shape[:-1], len(spans))
    return sums.index_add(-1, owner, values)


def _lengths(a: Segmentation, b: Segmentation) -> tuple[np.ndarray, np.ndarray]:
    pieces_a, pieces_b = _pieces(a), _pieces(b)
    if pieces_a is not None and pieces_b is not None:
        pieces_a, pieces_b = _same_text(pieces_a, pieces_b)
        a, b = [len(piece) for piece in pieces_a], [len(piece) for piece in pieces_b]
    elif pieces_a or pieces_b:
        raise InputError("give both sides as bytes or both as lengths")
    sides = np.asarray(a, dtype=np.int64), np.asarray(b, dtype=np.int64)
    for lengths in sides:
        if lengths.ndim != 1 or (lengths < 0).any():
            raise InputError(f"token lengths must be a list of numbers >= 0, got {lengths}")
    if sides[0].sum() != sides[1].sum():
        raise InputError(
            f"the two sides are not the same text: {sides[0].sum()} and {sides[1].sum()} bytes"
        )
    return sides


def _pieces(side: Segmentation) -> list[bytes] | None:
    """The side as a list of bytes, or None when it holds lengths."""
    if isinstance(side, np.ndarray | Tensor):
        return None
    pieces = [piece for piece in side if isinstance(piece, bytes)]
    return pieces if len(pieces) == len(side) else None


def _same_text(a: list[bytes], b: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    text_a, text_b = b"".join(a), b"".join(b)
    if text_a == b" " + text_b:
        return _without_leading_space(a), b
    if text_b == b" " + text_a:
        return a, _without_leading_space(b)
    if text_a != text_b:
        pairs = zip(text_a, text_b, strict=False)
        at = next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(text_a), len(text_b)))
        near = slice(max(at - 10, 0), at + 10)
        raise InputError(
            f"the two sides are not the same text: from byte {at} on "
            f"{text_a[near]!r} against {text_b[near]!r}; does a tokenizer normalise its input?"
        )
    return a, b


def _without_leading_space(pieces: list[bytes]) -> list[bytes]:
    first = next(index for index, piece in enumerate(pieces) if piece)
    return [*pieces[:first], pieces[first][1:], *pieces[first + 1 :]]
