"""The logits of a batch's targets a few rows at a time, of one model or of several side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from tokenry.core.checks import in_range
from tokenry.core.scores import Scores

PIECE_BYTES = 64 * 2**20  # logits held at a time


def logit_pieces(
    target: Tensor, views: Sequence[Scores], memory: int = PIECE_BYTES
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """(mask [B, T] bool, [logits [n, V] of each view]) on the CPU, over all targets in order.

    Args:
        target: [B, T] bool.
        views: scores of the same batch by each model, with hidden states or logits.
        memory: bytes of float32 logits held at a time, >= 1; a piece has one token at least.
    """
    in_range("memory", memory, "[1, inf)", integer=True)
    width = max(
        view.head.weight.shape[0] if view.head is not None else view.logits().shape[-1]
        for view in views
    )
    for part in target.nonzero().split(max(1, memory // (4 * width * len(views)))):
        if len(part):  # of no targets there is one empty piece
            mask = torch.zeros_like(target)
            mask[tuple(part.T)] = True
            yield mask, [view.logits(mask.to(view.mask.device)).cpu() for view in views]
