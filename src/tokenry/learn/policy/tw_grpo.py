"""TW-GRPO: positions at which the completions of a group disagree count more.

Of a group of G completions, at position t (counted from the completion's start):

    M_v  = mean_g log p_g(v),   d_gv = clip(M_v - log p_g(v), -11, 11)
    D_t  = mean_g sum_v ( exp d_gv - d_gv - 1 )                 >= 0, 0 where all agree
    w_t  = 1 + (alpha - 1) (D_t - min D) / (max D - min D + 1e-8)     in [1, alpha]
    maximise  sum_it w_t min( u A, clip(u) A ) / tokens

After its end a completion counts with the uniform distribution; min and max are over the positions
of the group's longest completion. The sampling policy's distributions are meant, and w is a
constant. They are made from hidden states, some positions and some of the vocabulary at a time.

Source: Reinforcing Video Reasoning with Focused Thinking (arXiv 2505.24718) and its code, which
lets the gradient through w; as a weight, it has none here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokenry.core.checks import within
from tokenry.core.errors import ShapeError
from tokenry.core.linear_head import LinearHead, sum_dtype
from tokenry.core.tiles import TILE_TOKENS, LogSum, vocabulary_tiles
from tokenry.learn.objective import objective
from tokenry.learn.policy.gradient import PolicyGradient, Preset
from tokenry.learn.policy.groups import GroupAdvantage, over_group
from tokenry.learn.policy.rollout_batch import Column, RolloutBatch
from tokenry.learn.policy.surrogate import Clip

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
    longest = _longest(mask, group)[:, None]
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


def _longest(mask: Tensor, group: Tensor) -> Tensor:
    """Tokens of the longest completion of each row's group, [B]."""
    peers, length = group.unique(return_inverse=True)[1], mask.sum(-1)
    most = length.new_zeros(int(peers.max()) + 1)
    return most.scatter_reduce(0, peers, length, "amax")[peers]


def _beside_targets(by_position: Tensor, mask: Tensor) -> Tensor:
    """[B, L] numbers of positions where the targets stand, [B, T]."""
    if not by_position.shape[1]:
        return by_position.new_zeros(mask.shape)
    place = (mask.cumsum(-1) - 1).clamp(0, by_position.shape[1] - 1)
    return by_position.gather(1, place).masked_fill(~mask, 0.0)


@dataclass(frozen=True)
class WeighedAdvantage:
    """The axis: GRPO's advantages; the weights are left for the updates."""

    alpha: float

    rollout_needs: ClassVar[tuple[str, ...]] = ("policy.hidden",)

    def __call__(self, rollouts: RolloutBatch) -> Tensor:
        scores, mask, group = rollouts.scores(), rollouts.mask, rollouts.group
        hidden, head = scores.need("hidden"), scores.need("head")
        rollouts.keep(focus=divergence_weights(hidden, head, mask, group, self.alpha))
        return GroupAdvantage()(rollouts)


@objective("tw-grpo", paper=132)
@dataclass(frozen=True)
class TWGRPO(Preset):
    """Token-Weighted GRPO, without a KL; weights are not normalised.

    Args:
        alpha: weight of the position that divides a group most, in [1, inf); 1 for no weights.
        clip, clip_high: bounds of the ratio, in (0, inf).
    """

    alpha: float = 1.7
    clip: float = 0.2
    clip_high: float = 0.28

    def __post_init__(self) -> None:
        within(self, "[1, inf)", "alpha")
        within(self, "(0, inf)", "clip", "clip_high")

    def composed(self) -> PolicyGradient:
        return PolicyGradient(
            WeighedAdvantage(self.alpha),
            clip=Clip(self.clip, self.clip_high),
            weights=(Column("focus"),),
            aggregation="token-mean",
        )
