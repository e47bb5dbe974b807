"""Conflicts: tokens that good and bad completions of a group have at the same position.

Token v at position t is in conflict when it stands there in a completion of the group with A > 0
and in one with A < 0. What counts is the unbroken run of conflicts from a completion's first token
on, and the one that ends at its last token, positions counted from the end.

Source: GTPO: Trajectory-Based Policy Optimization in Large Language Models (arXiv 2508.03772) and
its code.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def conflict_runs(
    ids: Tensor, mask: Tensor, advantage: Tensor, group: Tensor
) -> tuple[Tensor, Tensor]:
    """Tokens in the first and in the last run of conflicts, [B, T] bool each.

    Args:
        ids: [B, T], the completions' tokens; advantage, group: [B].
        mask: see `ids`.
    """
    place = mask.cumsum(-1) - 1
    from_end = mask.sum(-1, keepdim=True) - 1 - place
    forward = _run(_conflicts(ids, mask, place, advantage, group), mask)
    backward = _conflicts(ids, mask, from_end, advantage, group).flip(-1)
    return forward, _run(backward, mask.flip(-1)).flip(-1)


def _conflicts(
    ids: Tensor, mask: Tensor, place: Tensor, advantage: Tensor, group: Tensor
) -> Tensor:
    """True where both signs have this token at this place in this group, [B, T]."""
    keys = torch.stack([group[:, None].expand_as(ids)[mask], place[mask], ids[mask]], -1)
    kind = keys.unique(dim=0, return_inverse=True)[1]
    owner = advantage[:, None].expand(ids.shape)[mask]
    seen = torch.zeros(2, int(kind.max()) + 1 if len(kind) else 0, device=ids.device).bool()
    seen[0, kind[owner > 0]] = True
    seen[1, kind[owner < 0]] = True
    conflict = torch.zeros_like(mask)
    conflict[mask] = seen.all(0)[kind] & (owner != 0)
    return conflict


def _run(conflict: Tensor, mask: Tensor) -> Tensor:
    """The conflicts before a row's first token without one."""
    return mask & ((mask & ~conflict).cumsum(-1) == 0)
