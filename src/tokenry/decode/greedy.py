"""Greedy decoding from scores that a function gives: for models that are no causal ones."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


@torch.no_grad()
def greedy(
    next_scores: Callable[[Tensor], Tensor], rows: int, *, start: int, end: int, limit: int
) -> Tensor:
    """The most probable token, again and again: ids [rows, at most limit], the start left out.

    After `end`, only `end`.

    Args:
        next_scores: from ids [rows, t] to scores [rows, V] of the next token.
    """
    ids = torch.full((rows, 1), start)
    for _ in range(limit):
        token = next_scores(ids).argmax(-1)
        token = torch.where((ids == end).any(-1), end, token)
        ids = torch.cat([ids, token[:, None]], 1)
        if bool((token == end).all()):
            break
    return ids[:, 1:]
