"""Group divergence: how much the completions of a group disagree at each position.

See `learn.policy.tw_grpo` for the equations. The distributions are made from hidden states, some
positions and some of the vocabulary at a time, never [group, length, vocabulary].

Source: Reinforcing Video Reasoning with Focused Thinking (arXiv 2505.24718) and its code.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tokenry.core.errors import ShapeError
from tokenry.core.linear_head import LinearHead, sum_dtype
from tokenry.core.tiles import TILE_TOKENS, LogSum, vocabulary_tiles
from tokenry.learn.policy.groups import most_of_group, over_group

LARGEST_GAP = 11.0  # nats


@torch.no_grad()
def group_divergence(hidden: Tensor, head: LinearHead, mask: Tensor, group: Tensor) -> Tensor:
    """D of every target's position in its completion, [B, T]; 0 outside the mask.

    Args:
        hidden: [B, T, D], the states that predict the tokens. mask: [B, T]. group: [B].
    """
    return _beside_targets(_by_position(hidden, head, mask, group), mask)


@torch.no_grad()
def divergence_weights(
    hidden: Tensor, head: LinearHead, mask: Tensor, group: Tensor, alpha: float = 1.7
) -> Tensor:
    """w [B, T] of the targets, 0 elsewhere; see `group_divergence` for the arguments."""
    divergence = _by_position(hidden, head, mask, group)
    longest = most_of_group(mask.sum(-1), group)[:, None]
    within_group = torch.arange(divergence.shape[1], device=mask.device) < longest
    least = divergence.masked_fill(~within_group, torch.inf).amin(-1, keepdim=True)
    most = divergence.masked_fill(~within_group, -torch.inf).amax(-1, keepdim=True)
    scaled = (divergence - least) / (most - least + 1e-8)
    return _beside_targets(1 + (alpha - 1) * scaled, mask)


def _by_position(hidden: Tensor, head: LinearHead, mask: Tensor, group: Tensor) -> Tensor:
    """D by position, [B, L], the same for the rows of a group; 0 beyond its longest completion."""
    if hidden.shape[:2] != mask.shape:
        raise ShapeError(f"hidden {[*hidden.shape]} must begin with the mask's {[*mask.shape]}")
    rows, length = len(mask), mask.sum(-1)
    positions = int(length.max())
    places = mask.long().argsort(dim=-1, descending=True, stable=True)[:, :positions]
    going = torch.arange(positions, device=mask.device) < length[:, None]
    count = over_group(torch.ones_like(length), group)[:, None]
    total = hidden.new_zeros(rows, positions, dtype=sum_dtype(hidden.dtype))
    uniform = -math.log(len(head.weight))
    chunk = max(1, TILE_TOKENS // rows)
    for start in range(0, positions, chunk):
        part = slice(start, min(start + chunk, positions))
        index = places[:, part, None].expand(-1, -1, hidden.shape[-1])
        states = hidden.gather(1, index).flatten(0, 1).to(total.dtype)
        partition = LogSum(states)
        for _, logits in vocabulary_tiles(states, head):
            partition.add(logits)
        for _, logits in vocabulary_tiles(states, head):
            logprob = logits.sub_(partition.value[:, None]).view(rows, -1, logits.shape[1])
            logprob.masked_fill_(~going[:, part, None], uniform)
            gap = over_group(logprob, group).div_(count[..., None]).sub_(logprob)
            gap.clamp_(-LARGEST_GAP, LARGEST_GAP)
            total[:, part] += (gap.expm1() - gap).sum(-1)
    return over_group(total, group) / count


def _beside_targets(by_position: Tensor, mask: Tensor) -> Tensor:
    """[B, L] numbers of positions where the targets stand, [B, T]."""
    if not by_position.shape[1]:
        return by_position.new_zeros(mask.shape)
    place = (mask.cumsum(-1) - 1).clamp(0, by_position.shape[1] - 1)
    return by_position.gather(1, place).masked_fill(~mask, 0.0)
