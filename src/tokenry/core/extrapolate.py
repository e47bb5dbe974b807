"""Extrapolation: the distribution beyond one model, seen from another.

    z = z_a + w (z_a - z_b)          softmax z  is proportional to  p_a (p_a / p_b)^w

with z_a and z_b the logits of two models at the same place and w >= 0 a number or one per token
(w = 0 gives a; w < 0 leads from a towards b). Linear heads make it a linear head again: with h the
hidden states, W the matrices and c the biases,

    z = [ (1 + w) h_a, -w h_b, (1 + w), -w ] . [ W_a, W_b, c_a, c_b ]

so that `core.fused` works on it as on any model and no logits are made.

Where a probability is zero, `extrapolated` takes p_a (p_a / p_b)^w with 0^0 = 1: what a excludes
stays excluded (but for w = -1, which is b). Where b alone excludes a token, the ratio is infinite;
for w >= 0 there is nothing to contrast with, and the token keeps p_a.

Source: the operation behind contrastive decoding and proxy tuning; papers that use it cite it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch
from torch import Tensor

from tokenry.core.aggregate import full_precision
from tokenry.core.checks import in_range
from tokenry.core.errors import InputError, ShapeError, VocabularyError
from tokenry.core.fused import fused_scores
from tokenry.core.linear_head import LinearHead
from tokenry.core.scores import Scores


def extrapolated(logprob_a: Tensor, logprob_b: Tensor, weight: float | Tensor) -> Tensor:
    """log p_a + weight (log p_a - log p_b), not normalised, with the zeros as above.

    logprob_a, logprob_b: of one shape, -inf where impossible. weight: a number, or of a shape that
    broadcasts with them.
    """
    zero_a, zero_b = logprob_a == -torch.inf, logprob_b == -torch.inf
    # zeros are taken out before the arithmetic: inf - inf would be NaN, its gradient too
    own, other = logprob_a.masked_fill(zero_a, 0.0), logprob_b.masked_fill(zero_b, 0.0)
    weight = torch.as_tensor(weight, dtype=own.dtype, device=own.device)
    mixed = own + weight * (own - other)
    mixed = torch.where(zero_b, own.masked_fill(weight < 0, -torch.inf), mixed)
    return torch.where(zero_a, logprob_b.masked_fill(weight != -1, -torch.inf), mixed)


def extrapolate(
    a: Scores, b: Scores, weight: float | Tensor, needs: Collection[str] = ("logprob",)
) -> Scores:
    """The scores of softmax(z_a + weight (z_a - z_b)), with hidden states and a head of its own.

    a, b: scores of the same batch, made with "hidden". weight: a number, or [B, T] one per token.
    needs: which of "logprob", "entropy" to compute as well. Gradients flow to the hidden states.
    Raises VocabularyError for heads of different vocabularies, InputError for a head with a soft
    cap (its logits are not linear) and for scores without hidden states.
    """
    if a.ids.shape != b.ids.shape or not torch.equal(a.mask, b.mask):
        raise ShapeError("both sides must have scored the same tokens of the same batch")
    if not isinstance(weight, Tensor):
        in_range("weight", weight, "(-inf, inf)")
    elif weight.shape != a.ids.shape:
        raise ShapeError(
            f"weight must be a number or {list(a.ids.shape)}, got {list(weight.shape)}"
        )
    elif not weight.isfinite().all():
        raise InputError("weight holds values that are not finite numbers")
    if a.full_logits is not None and b.full_logits is not None:
        per_token = weight[a.mask][:, None] if isinstance(weight, Tensor) else weight
        full = a.full_logits, b.full_logits
        if full[0].shape != full[1].shape:
            raise VocabularyError(
                f"logits {list(full[0].shape)} and {list(full[1].shape)} cannot be extrapolated: "
                "they must be of the same tokens and vocabulary"
            )
        own, other = (full_precision(logits).log_softmax(-1) for logits in full)
        logits = extrapolated(own, other, per_token)
        logprobs = logits.log_softmax(-1)
        chosen = logprobs.gather(1, a.ids[a.mask][:, None])[:, 0]
        entropy = torch.special.entr(logprobs.exp()).sum(-1)
        return _placed(Scores(a.ids, a.mask, full_logits=logits), chosen, entropy, needs)
    if a.hidden is None or b.hidden is None or a.head is None or b.head is None:
        raise InputError('extrapolation needs both sides scored with needs=(..., "hidden")')
    head = _joined(a.head, b.head)
    # A difference of large multiples of almost equal logits: never in half precision.
    own, other = full_precision(a.hidden), full_precision(b.hidden)
    factor = torch.as_tensor(weight, dtype=own.dtype, device=own.device)
    factor = factor.expand(a.ids.shape)[..., None]  # [B, T, 1]
    pieces = [(1 + factor) * own, -factor * other]
    if head.weight.shape[1] > own.shape[-1] + other.shape[-1]:
        pieces += [1 + factor, -factor]  # the biases' columns
    hidden = torch.cat(pieces, -1) * a.mask[..., None]
    mixed = Scores(a.ids, a.mask, hidden=hidden, head=head)
    if not set(needs) & {"logprob", "entropy"}:
        return mixed
    fused = fused_scores(hidden[a.mask], head, a.ids[a.mask], entropy="entropy" in needs)
    return _placed(mixed, fused.logprob, fused.entropy, needs)


def _joined(a: LinearHead, b: LinearHead) -> LinearHead:
    if len(a.weight) != len(b.weight):
        raise VocabularyError(
            f"vocabularies of {len(a.weight)} and {len(b.weight)} tokens cannot be extrapolated"
        )
    if a.softcap is not None or b.softcap is not None:
        raise InputError("a head with a soft cap is not linear and cannot be extrapolated")
    if any(head.bias is not None and not head.bias.isfinite().all() for head in (a, b)):
        raise InputError(
            "a head whose bias excludes tokens (infinite) is not linear and cannot be "
            "extrapolated: score with full logits"
        )
    columns = [head.weight.detach() / head.temperature for head in (a, b)]
    if a.bias is not None or b.bias is not None:
        for head in (a, b):
            bias = head.weight.new_zeros(len(head.weight)) if head.bias is None else head.bias
            columns.append(bias.detach()[:, None] / head.temperature)
    return LinearHead(torch.cat(columns, 1))


def _placed(
    scores: Scores, logprob: Tensor, entropy: Tensor | None, needs: Collection[str]
) -> Scores:
    """Values of the scored tokens, back in their places [B, T]."""
    fields = {}
    for name, value in (("logprob", logprob), ("entropy", entropy)):
        if name in needs and value is not None:
            empty = value.new_zeros(scores.ids.shape)
            fields[name] = empty.masked_scatter(scores.mask, value)
    return replace(scores, **fields)
