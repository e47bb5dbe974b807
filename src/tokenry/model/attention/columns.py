"""Columns of keys and values that every head chooses for itself: taken out, and put back."""

from __future__ import annotations

import torch
from torch import Tensor


def compress(states: Tensor, index: Tensor) -> Tensor:
    """states [B, H or Hkv, L, D] at index [B, H, K]: [B, H, K, D]; key heads are repeated."""
    B, H, K = index.shape
    heads, L, D = states.shape[1:]
    row = torch.arange(B, device=index.device)[:, None] * heads
    head = torch.arange(H, device=index.device) // (H // heads)
    at = (row + head).unsqueeze(-1) * L + index.clamp(max=L - 1)
    return states.reshape(-1, D).index_select(0, at.flatten()).view(B, H, K, D)


def scatter(compressed: Tensor, index: Tensor, length: int) -> Tensor:
    """The reverse: compressed [B, H, K, D] at its places of [B, H, length, D], 0 elsewhere."""
    B, H, _, D = compressed.shape
    row = torch.arange(B, device=index.device)[:, None, None]
    head = torch.arange(H, device=index.device)[:, None]
    whole = compressed.new_zeros(B, length + 1, H, D)  # one more for the index of unused slots
    whole[row, index, head] = compressed
    return whole[:, :length].transpose(1, 2)
