"""Softmax attention to salient and recent tokens, and a linear state for all older ones.

The mathematics of STILL, whose equations stand in `model.memory.still`: which tokens are salient,
the feature map, and the attention of a whole text, chunk by chunk. Per head; one key per query
head.

Source: "STILL: Selecting Tokens for Intra-Layer Hybrid Attention to Linearize LLMs" (arXiv
2602.02180).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from tokenry.core.errors import ShapeError

LINEAR_FLOOR = 1e-6  # in the denominator of y


def self_saliency(
    query: Tensor,
    key: Tensor,
    *,
    window: int = 64,
    scaling: float | None = None,
    eps: float = 1e-8,
) -> Tensor:
    """score_t of every token, [B, H, L] float32; query and key [B, H, L, D], one key per query
    head. Padding may only follow the text."""
    L = query.shape[2]
    own, before = triangle(window, query.device)
    logits = local_logits(query, key, window, scaling)  # [B, H, C, l, 2l]
    logits = logits.masked_fill(~torch.cat([before, own], dim=-1), -torch.inf)
    logits[:, :, 0, :, :window] = -torch.inf
    score = saliency(logits, torch.arange(window, device=query.device) + window, eps)
    score[:, :, 0, 0] = torch.inf
    return score.flatten(2)[..., :L]


def saliency(logits: Tensor, itself: Tensor, eps: float = 1e-8) -> Tensor:
    """The divergence from attention without itself: logits [..., n, K], itself: [n] or [..., n],
    the column of each query's own token."""
    column = itself.expand(logits.shape[:-1]).unsqueeze(-1)
    probability = logits.softmax(-1)
    without = logits.scatter(-1, column, -torch.inf).softmax(-1)
    return (probability * ((probability + eps).log() - (without + eps).log())).sum(-1)


def route(scores: Tensor, chunk: int, topk: int) -> Tensor:
    """Which tokens are salient, bool like scores [B, H, L]: the best `topk` of each chunk."""
    chunks = into_chunks(scores.unsqueeze(-1), chunk, -torch.inf).squeeze(-1)
    best = chunks.topk(topk, dim=-1).indices
    salient = torch.zeros_like(chunks, dtype=torch.bool).scatter_(-1, best, True)
    return salient.flatten(2)[..., : scores.shape[-1]]


def hybrid_chunk_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gate: Tensor,
    query_features: Tensor,
    key_features: Tensor,
    salient: Tensor,
    *,
    chunk: int = 64,
    scaling: float | None = None,
) -> Tensor:
    """y, [B, H, L, D] float32.

    Args:
        query: [B, H, L, D].
        key: [B, H, L, D], one per query head, as are the values.
        value: [B, H, L, D].
        gate: [B, H, L, D].
        query_features: [B, H, L, 2D].
        key_features: [B, H, L, 2D].
        salient: bool [B, H, L], the same number in each whole chunk.
    """
    L, D = query.shape[2:]
    own, _ = triangle(chunk, query.device)
    local = local_logits(query, key, chunk, scaling)
    local = local.masked_fill(~torch.cat([torch.ones_like(own), own], dim=-1), -torch.inf)
    local[:, :, 0, :, :chunk] = -torch.inf
    values = into_chunks(value.float(), chunk)  # [B, H, C, l, D]
    recent = torch.cat([pad(values[:, :, :-1], (0, 0, 0, 0, 1, 0)), values], dim=3)
    older = max(values.shape[2] - 2, 0)  # chunks that some query sees from a distance
    if not older:
        weight = (local - local.amax(-1, keepdim=True)).exp()
        exact = (weight @ recent) / (weight.sum(-1, keepdim=True) + LINEAR_FLOOR)
        return exact.flatten(2, 3)[:, :, :L]

    queries, keys = into_chunks(query.float(), chunk), into_chunks(key.float(), chunk)
    distant, kept = far_keys(salient, chunk, older)
    B, H = salient.shape[:2]
    flat = (B, H, older * kept, D)
    at = distant.unsqueeze(-1).expand(-1, -1, -1, -1, D)
    far_key = keys[:, :, :older].gather(3, at).reshape(flat)
    far_value = values[:, :, :older].gather(3, at).reshape(flat)
    factor: float = D**-0.5 if scaling is None else scaling
    far = queries[:, :, 2:] * factor @ far_key.unsqueeze(2).transpose(-1, -2)
    number = torch.arange(older, device=query.device)
    left = number.repeat_interleave(kept) <= number[:, None]  # [older, older * kept]
    far = far.masked_fill(~left[:, None], -torch.inf)
    far = pad(far, (0, 0, 0, 0, 2, 0), value=-torch.inf)  # the first two chunks see none

    top = torch.cat([local, far], dim=-1).amax(-1, keepdim=True)
    near_weight, far_weight = (local - top).exp(), (far - top).exp()
    numerator = near_weight @ recent + far_weight @ far_value.unsqueeze(2)
    denominator = near_weight.sum(-1, keepdim=True) + far_weight.sum(-1, keepdim=True)

    folded = key_features.float() * ~salient.unsqueeze(-1)
    folded = into_chunks(folded, chunk)[:, :, :older]  # [B, H, older, l, 2D]
    state = (folded.transpose(-1, -2) @ values[:, :, :older]).cumsum(2)
    mass = folded.sum(3).cumsum(2)
    features = into_chunks(query_features.float(), chunk)
    linear = pad(features[:, :, 2:] @ state, (0, 0, 0, 0, 2, 0))
    numerator = numerator + into_chunks(gate.float(), chunk) * linear
    share = pad(features[:, :, 2:] @ mass.unsqueeze(-1), (0, 0, 0, 0, 2, 0))
    return (numerator / (denominator + share + LINEAR_FLOOR)).flatten(2, 3)[:, :, :L]


def far_keys(salient: Tensor, chunk: int, older: int) -> tuple[Tensor, int]:
    """([B, H, older, kept]: the salient places in each of the first chunks, kept)."""
    chunks = into_chunks(salient.unsqueeze(-1).float(), chunk).squeeze(-1)[:, :, :older]
    kept = int(chunks[0, 0, 0].sum())
    if not bool((chunks.sum(-1) == kept).all()):
        raise ShapeError("every chunk must have the same number of salient tokens")
    return chunks.topk(kept, dim=-1).indices, kept


def into_chunks(states: Tensor, chunk: int, fill: float = 0.0) -> Tensor:
    """[B, H, L, D] as [B, H, C, chunk, D], filled up at the end."""
    missing = -states.shape[2] % chunk
    return pad(states, (0, 0, 0, missing), value=fill).unflatten(2, (-1, chunk))


def local_logits(query: Tensor, key: Tensor, chunk: int, scaling: float | None) -> Tensor:
    """[B, H, C, l, 2l] float32: scores of the previous chunk's keys and of the query's own."""
    factor: float = query.shape[-1] ** -0.5 if scaling is None else scaling
    keys = into_chunks(key.float(), chunk).transpose(-1, -2)  # [B, H, C, D, l]
    keys = torch.cat([pad(keys[:, :, :-1], (0, 0, 0, 0, 1, 0)), keys], dim=-1)
    return into_chunks(query.float(), chunk) * factor @ keys


def triangle(chunk: int, device: Any) -> tuple[Tensor, Tensor]:
    """bool [l, l] twice: the own chunk's keys up to the query, the previous chunk's keys that are
    fewer than l tokens away."""
    own = torch.ones(chunk, chunk, dtype=torch.bool, device=device).tril()
    return own, ~own


class NormPreservingFeatureMap(nn.Module):
    """phi for each head: states [B, H, L, D] to positive features [B, H, L, 2D] of sum 2."""

    def __init__(self, heads: int, dim: int, generator: torch.Generator | None = None):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(dim).repeat(heads, 1, 1))  # W
        self.normal = nn.Parameter(torch.randn(heads, dim, generator=generator))  # u, any length

    def direct(self, states: Tensor) -> Tensor:
        """z: a new direction with the norm of x."""
        states = states.float()
        turned = householder(states, self.normal.float().unsqueeze(1))
        turned = turned @ self.weight.float().transpose(-1, -2)
        length = states.norm(dim=-1, keepdim=True)
        return turned / turned.norm(dim=-1, keepdim=True).clamp_min(1e-12) * length

    def forward(self, states: Tensor) -> Tensor:
        direction = self.direct(states)
        features = torch.cat([direction.softmax(-1), (-direction).softmax(-1)], dim=-1)
        return features.clamp_min(1e-12)


def householder(states: Tensor, normal: Tensor) -> Tensor:
    """x - 2u u^T x: the reflection at the plane across u = normal / |normal|."""
    unit = normal / normal.norm(dim=-1, keepdim=True)
    return states - 2 * (states * unit).sum(-1, keepdim=True) * unit
