"""Token influence: what a token's step on the output matrix does to the good completions.

With h_t the state that predicts token t and e_t = onehot(y_t) - pi_t the error there,

    M   = sum over the good completions' tokens of  e h^T         [V, D], never whole
    s_t = e_t^T M h_t

so that A s_t, summed over tokens, is the inner product of the gradients, in the output matrix, of
sum_good log pi and of sum A log pi. The head is gone through in tiles of the vocabulary.

Source: Token Hidden Reward (arXiv 2510.03669); the identity is exact, for heads with a soft cap or
a temperature too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenry.core.errors import ShapeError
from tokenry.core.fused import fused_scores
from tokenry.core.linear_head import LinearHead, sum_dtype

CELLS = 2**20  # numbers of a tile [tokens, vocabulary]


@torch.no_grad()
def token_influence(
    hidden: Tensor, head: LinearHead, ids: Tensor, mask: Tensor, good: Tensor, group: Tensor
) -> Tensor:
    """s [B, T], 0 outside the mask and in groups that are all good or all not.

    Args:
        hidden: [B, T, D]. ids, mask: [B, T]. good, group: [B], P as bool, and the prompts.
    """
    if hidden.shape[:2] != mask.shape or ids.shape != mask.shape:
        raise ShapeError(
            f"hidden {[*hidden.shape]} and ids {[*ids.shape]} must begin with the mask's shape "
            f"{[*mask.shape]}"
        )
    influence = hidden.new_zeros(mask.shape, dtype=sum_dtype(hidden.dtype))
    of_good = good[:, None].expand(mask.shape)
    for number in group.unique():
        rows = group == number
        if bool(good[rows].any()) and not bool(good[rows].all()):
            own = mask & rows[:, None]
            states = hidden[own].to(influence.dtype)
            influence[own] = _influence(states, head, ids[own], of_good[own])
    return influence


def _influence(states: Tensor, head: LinearHead, targets: Tensor, good: Tensor) -> Tensor:
    """s [N] of the tokens of one group, from states [N, D]."""
    partition = fused_scores(states, head, targets).logsumexp[:, None]
    total = torch.zeros_like(partition[:, 0])
    size = max(1, CELLS // max(1, len(states)))
    for start in range(0, len(head.weight), size):
        part = slice(start, start + size)
        raw = states @ head.weight[part].to(states.dtype).T
        if head.bias is not None:
            raw = raw + head.bias[part].to(states.dtype)
        error = -(head.shaped(raw) - partition).exp()
        at = targets - start
        inside = ((at >= 0) & (at < error.shape[1])).nonzero()[:, 0]
        error[inside, at[inside]] += 1
        if head.softcap is not None:  # d logits / d (W h)
            error = error * (1 - (raw / head.softcap).tanh().square())
        error = error / head.temperature
        tile = error[good].T @ states[good]  # these rows of M
        total += (error * (states @ tile.T)).sum(-1)
    return total
