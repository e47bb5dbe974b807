"""Attention alignment: cross-attention held to sentences, and taught which source belongs to which
target.

Sentence mask: a target position sees the source positions of its own sentence,

    allowed[t, s] = 1[σ(t) = σ(s)]

Alignment loss: with ω the number of the aligned group (a word and its notes), target map and weight

    μ[t, s] = 1[ω(t) = ω(s)] / max(1, Σ_s' 1[ω(t) = ω(s')])
    w[t, s] = 1[σ(t) = σ(s)] / max(1, Σ_s' 1[σ(t) = σ(s')])
    L = Σ_{t not padding} mean_l Σ_s w[t, s] (A^l[t, s] - μ[t, s])²

A^l [B, T, S] is the cross-attention of decoder layer l, averaged over heads. Negative ids, those of
padding and of ends, match nothing. L is a sum over target tokens, as is the likelihood that it is
added to: total = Σ_t -log p(y_t) + α L with α = 1, divided by the number of target tokens.

Source: SongMASS: Automatic Song Writing with Pre-training and Alignment Constraint (arXiv
2012.05168), section 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tokenry.core.errors import InputError, ShapeError


def sentence_attention_mask(target_sentences: Tensor, source_sentences: Tensor) -> Tensor:
    """bool [B, T, S]: the source positions that each target position may see.

    target_sentences [B, T], source_sentences [B, S]: the number of each token's sentence, negative
    for tokens of none. A target position whose sentence has no source sees everything, since a
    softmax over nothing is undefined.
    """
    same = matches(target_sentences, source_sentences)
    return same | ~same.any(-1, keepdim=True)


def alignment_attention_loss(
    attentions: Sequence[Tensor],
    target_words: Tensor,
    source_words: Tensor,
    target_sentences: Tensor,
    source_sentences: Tensor,
    target: Tensor | None = None,
) -> Tensor:
    """L, a scalar, from the cross-attentions [B, T, S] of the layers.

    target_words [B, T] and source_words [B, S]: numbers of the aligned groups; *_sentences alike.

    Args:
        target: bool [B, T], True for tokens that count (default: those with a sentence).
    """
    if not attentions:
        raise InputError("the loss of no layer's attention is undefined: give at least one")
    shape = (*target_words.shape, source_words.shape[1])
    for attention in attentions:
        if attention.shape != shape:
            raise ShapeError(f"attentions must be {list(shape)}, not {list(attention.shape)}")
    wanted = shares(matches(target_words, source_words))
    weight = shares(matches(target_sentences, source_sentences))
    counts = target_sentences >= 0 if target is None else target.bool()
    layers = torch.stack([attention.float() for attention in attentions])  # [L, B, T, S]
    per_token = (weight * (layers - wanted).square()).sum(-1).mean(0)
    return torch.where(counts, per_token, 0.0).sum()


def matches(target_ids: Tensor, source_ids: Tensor) -> Tensor:
    """bool [B, T, S]: where ids are equal and not negative."""
    if target_ids.ndim != 2 or source_ids.ndim != 2 or len(target_ids) != len(source_ids):
        raise ShapeError(
            f"target ids {list(target_ids.shape)} and source ids {list(source_ids.shape)} must be "
            "[B, T] and [B, S]"
        )
    return (target_ids[:, :, None] == source_ids[:, None]) & (target_ids >= 0)[:, :, None]


def shares(matching: Tensor) -> Tensor:
    """Equal shares of one among the matching source positions, zeros where there are none."""
    matching = matching.float()
    return matching / matching.sum(-1, keepdim=True).clamp_min(1.0)
