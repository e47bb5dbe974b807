"""Segments: stretches of a completion between states whose value is known, and their advantages.

    boundary after token t     a state s_t that was judged by completions of its own, V(s_t); the
                               prompt's own state lies on its last token
    chain    A_t = V(right end of t's segment) - V(left end)      left end outside, right end inside
    tree     A_t = V(node of t) - V(its parent)                   V(leaf) = R, V(node) = mean of its
                                                                  children, in a balanced tree the
                                                                  mean of its leaves

The right end of a completion's last segment is worth its reward. What stands before the first
boundary belongs to no segment and has the advantage 0.

Source: Segment Policy Optimization: Effective Segment-Level Credit Assignment in RL for Large
Language Models (arXiv 2505.23564) and its code.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenry.core.checks import in_range
from tokenry.learn.policy.groups import over_group

EPS = 1e-8


def cutpoints(
    probability: Tensor, mask: Tensor, threshold: float = 0.9, interval: int = 5
) -> Tensor:
    """Boundaries just before every `interval`-th token that the policy was unsure of, [B, T] bool.

    Args:
        probability: [B, T] of each token when it was sampled. mask: [B, T], the completions.
        threshold: a token is a candidate where its probability is below, in (0, 1].
        interval: K in [1, inf); the first candidate counts.
    """
    in_range("threshold", threshold, "(0, 1]")
    in_range("interval", interval, "[1, inf)", integer=True)
    return _before(mask & (probability < threshold), interval)


def fixed_segments(mask: Tensor, size: int) -> Tensor:
    """Boundaries every `size` tokens, the prompt's own state the first, [B, T] bool."""
    in_range("size", size, "[1, inf)", integer=True)
    return _before(mask, size)


def _before(candidate: Tensor, interval: int) -> Tensor:
    rank = candidate.cumsum(-1) - 1
    chosen = candidate & (rank % interval == 0)
    return torch.nn.functional.pad(chosen[:, 1:], (0, 1))  # the state before token t is that of t-1


def segment_advantages(value: Tensor, boundary: Tensor, final: Tensor, mask: Tensor) -> Tensor:
    """The chain's advantages, [B, T]; 0 outside the mask.

    Args:
        value: [B, T], V of the state behind each token, wherever `boundary` [B, T] is True.
        final: [B], the reward. mask: [B, T], the completions.
    """
    width = mask.shape[1]
    place = torch.arange(width, device=mask.device).expand(mask.shape)
    until = torch.where(boundary, place, -1).cummax(-1).values  # the last boundary, t included
    left = torch.nn.functional.pad(until[:, :-1], (1, 0), value=-1)
    right = torch.where(boundary, place, width).flip(-1).cummin(-1).values.flip(-1)
    behind = value.gather(-1, right.clamp_max(width - 1))
    behind = torch.where(right < width, behind, final[:, None])
    advantage = behind - value.gather(-1, left.clamp_min(0))
    return torch.where(mask & (left >= 0), advantage, 0.0)


def tree_advantages(
    node: Tensor, mask: Tensor, reward: Tensor, group: Tensor, normalize: bool = False
) -> tuple[Tensor, Tensor]:
    """The tree's advantages [B, T], and which tokens stand for their node, [B, T] bool: those of
    the first leaf that has it, so that every segment counts once.

    Args:
        node: [B, T], the number of each token's segment (`sources.tree`); leaves are rows.
        reward: [B], of the leaves. group: [B], the tree of each.
        normalize: divide by the population standard deviation of the parent's children, + 1e-8.
    """
    row, column = mask.nonzero(as_tuple=True)
    nodes, token = node[mask].unique(return_inverse=True)
    starts = torch.ones_like(row, dtype=torch.bool)
    starts[1:] = (token[1:] != token[:-1]) | (row[1:] != row[:-1])
    leaf, own = row[starts], token[starts]  # each segment of each leaf

    def mean(values: Tensor, key: Tensor, size: int) -> Tensor:
        empty = values.new_zeros(size)
        count = empty.index_add(0, key, torch.ones_like(values)).clamp_min(1)
        return empty.index_add(0, key, values) / count

    value = mean(reward[leaf], own, len(nodes))
    peers = group.unique(return_inverse=True)[1]
    root = over_group(reward, group) / over_group(torch.ones_like(reward), group)  # [B]
    inner = torch.zeros_like(leaf, dtype=torch.bool)
    inner[1:] = leaf[1:] == leaf[:-1]  # the segment before it is its parent, else the prompt
    before = own.roll(1)
    change = value[own] - torch.where(inner, value[before], root[leaf])
    if normalize:
        parent = torch.where(inner, before, len(nodes) + peers[leaf])
        spread = mean(change.square(), parent, len(nodes) + len(group)).sqrt()
        change = change / (spread[parent] + EPS)
    first = torch.full_like(nodes, len(group)).scatter_reduce(0, own, leaf, "amin")
    advantage = torch.zeros(mask.shape, dtype=reward.dtype, device=reward.device)
    advantage[row, column] = change[starts.cumsum(0) - 1]
    stands = torch.zeros_like(mask)
    stands[row, column] = first[token] == row
    return advantage, stands


def whitened(values: Tensor, mask: Tensor) -> Tensor:
    """(x - mean) / sqrt(var + 1e-8) over the masked ones, population variance; 0 elsewhere."""
    kept = values[mask]
    if not len(kept):
        return torch.zeros_like(values)
    scaled = (values - kept.mean()) * (kept.var(correction=0) + EPS).rsqrt()
    return torch.where(mask, scaled, 0.0)
