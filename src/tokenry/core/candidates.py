"""Candidates: tokens drawn from a head's distributions, and how likely some tokens are, without the
logits.

    draws         v_1 .. v_n ~ softmax(z) independently: the first v at which the running sum of
                  probabilities, tile by tile, exceeds a uniform number
    log p(v_i)    = z_{v_i} - log sum_u exp z_u, of any tokens, repeated ones included
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenry.core.checks import in_range
from tokenry.core.errors import ShapeError, VocabularyError
from tokenry.core.fused import fused_scores
from tokenry.core.linear_head import LinearHead, check_fits, sum_dtype
from tokenry.core.tiles import LogSum, row_tiles, vocabulary_tiles


@torch.no_grad()
def fused_draws(
    hidden: Tensor, head: LinearHead, count: int, generator: torch.Generator | None = None
) -> Tensor:
    """Tokens drawn independently from each row's distribution, [N, count].

    Args:
        hidden: [N, D].
        count: draws of each row, in [1, inf).
        generator: None draws from torch's global generator of the CPU.
    """
    check_fits(hidden, head)
    in_range("count", count, "[1, inf)", integer=True)
    drawn = torch.zeros(len(hidden), count, dtype=torch.long, device=hidden.device)
    dtype = sum_dtype(hidden.dtype)
    uniform = torch.rand(drawn.shape, generator=generator, dtype=dtype).to(hidden.device)
    for rows, states in row_tiles(hidden):
        total = LogSum(states)
        for _, logits in vocabulary_tiles(states, head):
            total.add(logits)
        below = states.new_zeros(len(states), 1)
        # less than what float sums of probabilities may lack of 1
        wanted = uniform[rows] * (1 - 64 * torch.finfo(dtype).eps)
        for columns, logits in vocabulary_tiles(states, head):
            chance = logits.sub_(total.value[:, None]).exp_()
            until = below + chance.cumsum(-1)
            at = torch.searchsorted(until, wanted, right=True)
            here = (wanted >= below) & (at < chance.shape[1])
            drawn[rows] = torch.where(here, at + columns.start, drawn[rows])
            below = until[:, -1:]
    return drawn


def choice_logprob(hidden: Tensor, head: LinearHead, ids: Tensor) -> Tensor:
    """Log-probabilities of k tokens of each row, [N, k]; they may be the same.

    Differentiable in hidden, head.weight and head.bias; takes the memory of [N, k, D].

    Args:
        hidden: [N, D].
        ids: [N, k], k >= 1.

    Raises:
        ShapeError: shapes differ.
        VocabularyError: an id outside the vocabulary.
    """
    if ids.ndim != 2 or len(ids) != len(hidden) or not ids.shape[1]:
        raise ShapeError(f"ids must be [{len(hidden)}, k] with k >= 1, got {list(ids.shape)}")
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < len(head.weight):
        raise VocabularyError(
            f"ids run from {int(ids.min())} to {int(ids.max())}, the head has {len(head.weight)} "
            "tokens"
        )
    dtype = sum_dtype(hidden.dtype)
    logsumexp = fused_scores(hidden, head, ids[:, 0]).logsumexp
    raw = torch.einsum("nd,nkd->nk", hidden.to(dtype), head.weight[ids].to(dtype))
    if head.bias is not None:
        raw = raw + head.bias[ids].to(dtype)
    return head.shaped(raw) - logsumexp[:, None]
