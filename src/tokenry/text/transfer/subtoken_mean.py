"""Subtoken mean: a new token begins as the mean of the old tokens that spell it.

    E'_v = E_u                          if the old token u has the bytes of v
    E'_v = 1/n sum_i E_{u_i}            else, u_1 .. u_n = old(v), the old tokenizer's tokens of v
    E'_v = mean of E over old tokens    if v has no bytes (a special token that the old one lacks)

The baseline that every transfer method has to beat, and often hard to beat.

Source: the averaging of Efficient Domain Adaptation of Language Models via Adaptive Tokenization
(arXiv 2109.07460). Special tokens are matched by their names; bytes that are no whole text are
spelled by the old vocabulary's one-byte tokens, else they count as no bytes (ours).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenry.core.errors import ShapeError
from tokenry.text.transfer.base import embedding_transfer
from tokenry.text.vocabulary import token_bytes


@embedding_transfer("subtoken-mean")
@dataclass(frozen=True)
class SubtokenMean:
    """`SubtokenMean()(table, old_tokenizer, new_tokenizer)`; nothing to set."""

    def __call__(self, embeddings: Tensor, old: Any, new: Any) -> Tensor:
        if embeddings.ndim != 2 or len(embeddings) < len(old):
            raise ShapeError(
                f"embeddings must be [>= {len(old)}, D] for this tokenizer, got "
                f"{list(embeddings.shape)}"
            )
        by_bytes: dict[bytes, int] = {}
        for u, piece in enumerate(token_bytes(old)):
            by_bytes.setdefault(piece, u)
        names = old.get_vocab()
        rows = embeddings[: len(old)]
        average = rows.float().mean(0)
        made = []
        for v, piece in enumerate(token_bytes(new)):
            name = new.convert_ids_to_tokens(v)
            if not piece and name in names:
                made.append(rows[names[name]].float())
                continue
            sources = _spelled(piece, old, by_bytes)
            made.append(rows[sources].float().mean(0) if sources else average)
        return torch.stack(made).to(embeddings.dtype)


def _spelled(piece: bytes, old: Any, by_bytes: dict[bytes, int]) -> list[int]:
    """The old tokens of some bytes; none where they cannot be written."""
    if not piece or piece in by_bytes:
        return [by_bytes[piece]] if piece else []
    try:
        return list(old(piece.decode(), add_special_tokens=False)["input_ids"])
    except UnicodeDecodeError:
        single = [by_bytes.get(bytes([byte])) for byte in piece]
        return [u for u in single if u is not None] if None not in single else []
