"""Divergences between next-token distributions, exact and in log space.

    D_f(p || q) = Σ_v q_v f(p_v / q_v),   f convex, f(1) = 0

p is the reference (or teacher), q the policy (or student). Both are given as logits. The
kinds are those of `divergences`; also here is the Rényi divergence, which is no f-divergence.
Monte-Carlo estimators are in `kl_estimators`.

Zeros: a token that both distributions exclude (-inf in both) contributes 0 and has no gradient; one
that p excludes contributes q f(0), one that q excludes p f'(∞). Either may be infinite, and where
the divergence is infinite its gradient is not defined. A probability that underflows to 0 counts
as 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenry.core.checks import in_range, within
from tokenry.core.divergences import FORWARD_KL, divergence_named
from tokenry.core.errors import ShapeError, VocabularyError
from tokenry.core.f_divergence import FDivergence
from tokenry.core.generators import NEGATIVE_INFINITY


@dataclass(frozen=True)
class Comparison:
    """How two distributions are compared at every token.

    See `divergence`.

    Args:
        kind: the divergence D(p || q), p the reference's or teacher's.
        temperature: divides the logits of both, > 0; no factor temperature^2 is applied.
        top_k: compare on p's likeliest tokens only, >= 1; None is the whole vocabulary.
        tail: with one bucket for all the others (a lower bound); False leaves them out.
    """

    kind: FDivergence
    temperature: float = 1.0
    top_k: int | None = None
    tail: bool = True

    def __post_init__(self) -> None:
        within(self, "(0, inf)", "temperature")
        within(self, "[1, inf)", "top_k", integer=True, optional=True)

    def __call__(self, p_logits: Tensor, q_logits: Tensor) -> Tensor:
        """The divergence of logits [..., V] -> [...]."""
        return divergence(
            p_logits, q_logits, self.kind, self.temperature, top_k=self.top_k, tail=self.tail
        )


def divergence(
    p_logits: Tensor,
    q_logits: Tensor,
    kind: FDivergence | str,
    temperature: float = 1.0,
    top_k: int | None = None,
    tail: bool = True,
) -> Tensor:
    """D_f(p || q) in nats from logits [..., V] -> [...], float32 (float64 when given float64).

    Exact over the whole vocabulary when `top_k` is None. Otherwise the support is the reference's
    `top_k` tokens plus, with `tail`, one bucket that holds all the remaining mass of each. Merging
    tokens into a bucket is a data-processing step: the result never exceeds the exact divergence,
    and equals it when p / q is constant over the bucket. Without `tail` the rest is left out of
    the sum (no renormalisation): no bound holds and the value may be negative.

    `temperature`, in (0, inf), divides both logits; no factor temperature² is applied. Gradients
    flow to both sides: pass detached logits for a frozen one.
    """
    kind = divergence_named(kind) if isinstance(kind, str) else kind
    p_logprob, q_logprob = _logprobs(p_logits, q_logits, temperature)
    if top_k is not None:
        p_logprob, q_logprob = _coarsened(p_logprob, q_logprob, top_k, tail)
    return kind.terms(p_logprob, q_logprob).sum(-1)


def renyi(p_logits: Tensor, q_logits: Tensor, order: float, temperature: float = 1.0) -> Tensor:
    """Rényi divergence in nats, log(Σ_v p^a q^(1-a)) / (a - 1) with a = `order` >= 0 -> [...].

    Order 1 is KL(p || q), order 0 is -log of q's mass on the support of p, order infinity is
    max_v log(p / q) over that support.
    """
    in_range("the order of a Rényi divergence", order, "[0, inf]")
    if order == 1:
        return divergence(p_logits, q_logits, FORWARD_KL, temperature)
    p_logprob, q_logprob = _logprobs(p_logits, q_logits, temperature)
    outside = p_logprob == NEGATIVE_INFINITY
    if math.isinf(order):
        return (p_logprob - q_logprob).masked_fill(outside, NEGATIVE_INFINITY).amax(-1)
    mixture = (1 - order) * q_logprob + (order * p_logprob if order else 0)
    mixture = mixture.masked_fill(outside, NEGATIVE_INFINITY)
    # infinite where q lacks what p has (order > 1) or shares nothing with it: without gradient
    infinite = mixture.amax(-1).isinf()
    total = mixture.masked_fill(infinite[..., None], 0.0).logsumexp(-1) / (order - 1)
    return total.masked_fill(infinite, math.inf)


def _logprobs(p_logits: Tensor, q_logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    in_range("temperature", temperature, "(0, inf)")
    if p_logits.shape[-1:] != q_logits.shape[-1:]:
        raise VocabularyError(
            f"distributions over {p_logits.shape[-1]} and {q_logits.shape[-1]} tokens cannot be "
            "compared; project both on one vocabulary first"
        )
    if p_logits.shape != q_logits.shape:
        raise ShapeError(
            f"logits must have one shape, got {list(p_logits.shape)} and {list(q_logits.shape)}"
        )
    dtype = torch.promote_types(p_logits.dtype, q_logits.dtype)
    dtype = dtype if dtype == torch.float64 else torch.float32
    p, q = (logits.to(dtype).div(temperature) for logits in (p_logits, q_logits))
    return p.log_softmax(-1), q.log_softmax(-1)


def _coarsened(
    p_logprob: Tensor, q_logprob: Tensor, top_k: int, tail: bool
) -> tuple[Tensor, Tensor]:
    """Both distributions on p's top_k tokens and, with tail, one bucket for the rest."""
    in_range("top_k", top_k, "[1, inf)", integer=True)
    support = p_logprob.topk(min(top_k, p_logprob.shape[-1])).indices  # [..., k]

    def kept(logprob: Tensor) -> Tensor:
        head = logprob.gather(-1, support)
        if not tail:
            return head
        rest = logprob.scatter(-1, support, NEGATIVE_INFINITY)
        empty = (rest == NEGATIVE_INFINITY).all(-1, keepdim=True)
        # logsumexp of nothing is -inf with a NaN gradient: sum zeros there instead, then put -inf
        mass = rest.masked_fill(empty, 0.0).logsumexp(-1, keepdim=True)
        return torch.cat([head, mass.masked_fill(empty, NEGATIVE_INFINITY)], -1)

    return kept(p_logprob), kept(q_logprob)
