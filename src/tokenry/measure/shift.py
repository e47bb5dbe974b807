"""Distribution shift: where a tuned model's next-token distributions left its base's, and how far.

At position t of texts, with p = softmax of the base's logits, q of the tuned model's:

    JS_t       = KL(p || m) / 2 + KL(q || m) / 2,  m = (p + q) / 2       nats, in [0, ln 2]
    H_t        = -sum_v p_v log p_v                                      the base's entropy, nats
    overlap_k  = |top_k(p) and top_k(q)| / k,  k = 1..K
    rank_t     = |{ v : p_v > p_b }|,   b = argmax q                     0: also the base's first
    p_t(b)                                                               what the base gave it

JS over the whole vocabulary, or of both cut to their own nucleus and renormalised (`top_p`). What
few positions carry of the sum of JS says `Shift.concentration`; the paper's thresholds are 0.01 for
"near zero" and 0.1 for "shifted". Over checkpoints of a run, `Concentration.largest` and `overlap`
say which positions stay the most shifted ones.

Source: Sparse but Critical: A Token-Level Analysis of Distributional Shifts in RLVR Fine-Tuning of
LLMs (arXiv 2603.22446). Definitions after a reading by others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenry.core.batch import TokenBatch
from tokenry.core.checks import in_range
from tokenry.core.divergence import divergence
from tokenry.core.divergences import JENSEN_SHANNON
from tokenry.core.errors import InputError, VocabularyError
from tokenry.core.nucleus import nucleus
from tokenry.core.signals import entropy
from tokenry.measure.concentration import Concentration
from tokenry.measure.logit_pieces import logit_pieces
from tokenry.model.score import score

NEAR_ZERO = 0.01
SHIFTED = 0.1


@dataclass(frozen=True)
class Shift:
    """The N target tokens of a batch, row after row.

    ids: [N]. place: [N], how far into its row's targets, in [0, 1). divergence, entropy: [N], nats.
    overlap: [N, K]. rank: [N] long. probability: [N]. See the module for what they are.
    """

    ids: Tensor
    place: Tensor
    divergence: Tensor
    entropy: Tensor
    overlap: Tensor
    rank: Tensor
    probability: Tensor

    @property
    def concentration(self) -> Concentration:
        return Concentration(self.divergence)

    @property
    def shifted(self) -> Tensor:
        """[N] bool: JS above 0.1."""
        return self.divergence > SHIFTED

    def by_place(self, bins: int = 20) -> Tensor:
        """Mean JS of the positions in each of `bins` >= 1 equal parts of a text, [bins]; NaN where
        no token lies."""
        in_range("bins", bins, "[1, inf)", integer=True)
        number = (self.place * bins).long().clamp(max=bins - 1)
        count = torch.bincount(number, minlength=bins)
        return torch.bincount(number, self.divergence.double(), minlength=bins) / count

    def by_token(self) -> dict[int, tuple[float, int]]:
        """Token id -> (mean JS, occurrences), the largest mean first."""
        ids, number, count = self.ids.unique(return_inverse=True, return_counts=True)
        mean = torch.bincount(number, self.divergence.double()) / count
        rows = zip(ids.tolist(), mean.tolist(), count.tolist(), strict=True)
        return {i: (m, n) for i, m, n in sorted(rows, key=lambda row: -row[1])}

    def mechanics(self) -> dict[str, Any]:
        """At the shifted positions: how many, the mean overlap of the k likeliest tokens [K], and
        the shares at which the tuned model's first choice is among the base's first three, and has
        less than 0.01 of the base's mass. InputError where nothing is shifted."""
        if not bool(self.shifted.any()):
            raise InputError(f"no position has JS above {SHIFTED}: there is nothing to look at")
        rank, given = self.rank[self.shifted], self.probability[self.shifted]
        return {
            "positions": int(self.shifted.sum()),
            "overlap": self.overlap[self.shifted].mean(0),
            "among the base's first three": float((rank < 3).double().mean()),
            "improbable to the base": float((given < 0.01).double().mean()),
        }


def distribution_shift(
    base: Any, tuned: Any, batch: TokenBatch, *, top: int = 20, top_p: float = 1.0
) -> Shift:
    """The shift at every target of a batch, of two models with one vocabulary.

    Args:
        base: the model before.
        tuned: the model after; the paper takes texts that it wrote itself.
        batch: texts; only targets are looked at.
        top: K, the largest k of the overlap, >= 1; at most the vocabulary.
        top_p: nucleus of both distributions for JS, in (0, 1]; 1 is the whole vocabulary.

    Raises:
        VocabularyError: output layers of different sizes.
        InputError: a batch without targets.
    """
    in_range("top", top, "[1, inf)", integer=True)
    if not bool(batch.target.any()):
        raise InputError("there is no target token to compare two models on")
    views = [score(model, batch, needs=("hidden",)) for model in (base, tuned)]
    parts = []
    for mask, (p, q) in logit_pieces(batch.target.cpu(), views):
        if p.shape != q.shape:
            raise VocabularyError(f"vocabularies of {p.shape[-1]} and {q.shape[-1]} tokens differ")
        own = p.gather(-1, q.argmax(-1, keepdim=True))  # of the tuned model's first choice
        parts.append(
            (
                batch.ids.cpu()[mask],
                divergence(nucleus(p, top_p), nucleus(q, top_p), JENSEN_SHANNON).clamp_min(0.0),
                entropy(p),
                top_overlap(p, q, top),
                (p > own).sum(-1),
                (own - p.logsumexp(-1, keepdim=True)).exp()[:, 0],
            )
        )
    target = batch.target.cpu()
    place = (target.cumsum(-1) - 1) / target.sum(-1, keepdim=True).clamp_min(1)
    ids, *values = (torch.cat(column) for column in zip(*parts, strict=True))
    return Shift(ids, place[target], *values)


def top_overlap(p: Tensor, q: Tensor, top: int) -> Tensor:
    """|top_k(p) and top_k(q)| / k for k = 1..min(top, V), from logits [N, V] -> [N, K]."""
    first, second = (logits.topk(min(top, logits.shape[-1])).indices for logits in (p, q))
    same = first[:, :, None] == second[:, None, :]  # [N, K, K]: place in p's list, in q's
    # a token is in both lists of k from the larger of its two places on
    shared = same.int().cumsum(1).cumsum(2).diagonal(dim1=1, dim2=2)
    return shared / torch.arange(1, shared.shape[-1] + 1)
