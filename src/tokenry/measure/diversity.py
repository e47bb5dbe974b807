"""How varied texts are."""

from __future__ import annotations

from torch import Tensor


def distinct_ngrams(sequences: Tensor, n: int) -> float:
    """The share of different ones among all n-grams of sequences [N, T], in (0, 1]."""
    ngrams = sequences.unfold(1, n, 1).reshape(-1, n)
    return len(ngrams.unique(dim=0)) / len(ngrams)
