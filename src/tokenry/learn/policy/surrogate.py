"""Surrogates: what one ascends to improve a policy with samples of a slightly older one.

With x_t = log pi(y_t|s_t) - log pi_old(y_t|s_t), u a ratio made of it and the advantage A_t,

    TokenRatio        u_t = exp x_t
    SequenceRatio     u_t = exp( mean of x over the completion ), the same for all its tokens
    MixedRatio        u_t = w_t exp x_t + (1 - w_t) exp( mean x )
    Clip              min( u A, clip(u, 1 - low, 1 + high) A )     and, with dual = c,
                      max( that, c A )  where A < 0
    Truncated         sg[ min(u, most) ] A log pi      (the gradient never stops, it is bounded)

Clip's is u A as long as u has not gone beyond its bound *in the direction that A wants*, and a
constant, without gradient, from the bound on. Its second line also bounds the loss on a bad token
that has become much likelier. Bounds may be numbers or tensors that broadcast with u.

Sources: Proximal Policy Optimization Algorithms (arXiv 1707.06347), eq. 7; dual clip: Mastering
Complex Control in MOBA Games with Deep Reinforcement Learning (arXiv 1912.09729); Group Sequence
Policy Optimization (arXiv 2507.18071), eqs. 5-7; MiniMax-M1 (arXiv 2506.13585), eqs. 4-5 (CISPO).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokenry.core.aggregate import full_precision, per_sequence
from tokenry.core.checks import in_range, within
from tokenry.core.errors import ShapeError
from tokenry.learn.policy.rollout_batch import RolloutBatch

Bound = float | Tensor
AxisBound = Bound | Callable[[RolloutBatch], Tensor] | None
LARGEST_LOG_RATIO = 20.0  # exp(20) = 5e8: further out the ratio is kept there, without gradient


def clipped_surrogate(
    logprob: Tensor,
    old_logprob: Tensor,
    advantage: Tensor,
    low: Bound = 0.2,
    high: Bound = 0.2,
    dual_clip: float | None = None,
    *,
    mask: Tensor | None = None,
) -> Tensor:
    """The surrogate of each token, to be maximised, [B, T].

    old_logprob, advantage: constants. mask: tokens outside it give 0 and no gradient, whatever
    stands there.
    """
    ratio = importance_ratio(logprob, old_logprob, mask)
    if mask is not None:
        advantage = torch.where(mask, advantage, 0.0)
    return clip_surrogate(ratio, advantage, low, high, dual_clip)


def clip_surrogate(
    ratio: Tensor,
    advantage: Tensor,
    low: Bound = 0.2,
    high: Bound = 0.2,
    dual_clip: float | None = None,
) -> Tensor:
    """The same from a ratio of any shape; advantage broadcasts with it."""
    lower, upper = _bounds(advantage, low, high, dual_clip)
    bounded = ratio.detach().maximum(lower).minimum(upper)
    inside = unclipped(ratio, advantage, low, high, dual_clip)
    return torch.where(inside, ratio, bounded) * full_precision(advantage.detach())


@torch.no_grad()
def unclipped(
    ratio: Tensor,
    advantage: Tensor,
    low: Bound = 0.2,
    high: Bound = 0.2,
    dual_clip: float | None = None,
) -> Tensor:
    """True where the surrogate still has a gradient; at the bound itself it has none."""
    lower, upper = _bounds(advantage, low, high, dual_clip)
    return (ratio > lower) & (ratio < upper)


def importance_ratio(logprob: Tensor, old_logprob: Tensor, mask: Tensor | None = None) -> Tensor:
    """u = pi / pi_old in float32 at least; 1 outside the mask."""
    return importance_log_ratio(logprob, old_logprob, mask).exp()


def importance_log_ratio(
    logprob: Tensor, old_logprob: Tensor, mask: Tensor | None = None
) -> Tensor:
    """log pi - log pi_old, bounded, in float32 at least; 0 outside the mask."""
    if logprob.shape != old_logprob.shape:
        raise ShapeError(
            f"logprob {[*logprob.shape]} and old_logprob {[*old_logprob.shape]} must have one shape"
        )
    double = torch.float64 in (logprob.dtype, old_logprob.dtype)
    wide = torch.float64 if double else torch.float32
    log_ratio = logprob.to(wide) - old_logprob.detach().to(wide)
    if mask is not None:
        log_ratio = torch.where(mask, log_ratio, 0.0)
    return log_ratio.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)


def clipped_value_loss(
    value: Tensor, old_value: Tensor, returns: Tensor, clip: float | None = 0.2
) -> Tensor:
    """A critic's loss of each token: half the squared error, at least that of the value kept
    within `clip` of its old one (None: no clip). To be minimised."""
    old_value, returns = old_value.detach(), returns.detach()
    error = (value - returns).square()
    if clip is not None:
        kept = old_value + (value - old_value).clamp(-clip, clip)
        error = torch.maximum(error, (kept - returns).square())
    return 0.5 * error


def _bounds(
    advantage: Tensor, low: Bound, high: Bound, dual_clip: float | None
) -> tuple[Tensor, Tensor]:
    """Between these two the ratio is free: below the upper one for good tokens, above the lower
    one for bad tokens."""
    in_range("dual_clip", dual_clip, "(1, inf)", optional=True)
    advantage = full_precision(advantage.detach())
    nothing = torch.full_like(advantage, float("-inf")), torch.full_like(advantage, float("inf"))
    most = nothing[1] if dual_clip is None else torch.full_like(advantage, dual_clip)
    lower = torch.where(advantage < 0, 1 - low + torch.zeros_like(advantage), nothing[0])
    upper = torch.where(advantage < 0, most, 1 + high + torch.zeros_like(advantage))
    return lower, upper


@dataclass(frozen=True)
class TokenRatio:
    """Each token has its own ratio."""

    def __call__(self, log_ratio: Tensor, rollouts: RolloutBatch) -> Tensor:
        return log_ratio.exp()


@dataclass(frozen=True)
class SequenceRatio:
    """The geometric mean of a completion's token ratios, for all its tokens (GSPO)."""

    def __call__(self, log_ratio: Tensor, rollouts: RolloutBatch) -> Tensor:
        mean = per_sequence(log_ratio, rollouts.mask, "mean")
        return mean[:, None].exp().expand_as(log_ratio)


@dataclass(frozen=True)
class MixedRatio:
    """A token's own ratio with weight w, its completion's with 1 - w.

    Args:
        weight: in [0, 1], or a function of the rollouts that gives [B, T]; a constant.
    """

    weight: float | Callable[[RolloutBatch], Tensor] = 0.5

    def __post_init__(self) -> None:
        if not callable(self.weight):
            within(self, "[0, 1]", "weight")

    def __call__(self, log_ratio: Tensor, rollouts: RolloutBatch) -> Tensor:
        weight = self.weight(rollouts).detach() if callable(self.weight) else self.weight
        token = TokenRatio()(log_ratio, rollouts)
        return weight * token + (1 - weight) * SequenceRatio()(log_ratio, rollouts)


@dataclass(frozen=True)
class Clip:
    """PPO's pessimistic bound: no gradient where the ratio has left [1 - low, 1 + high].

    Args:
        low: > 0, numbers or [B, T], or functions of the rollouts that give [B, T]; None: no bound
            on that side.
        high: as `low`.
        dual: > 1, bound on the ratio of tokens with a negative advantage; None: none.
    """

    low: AxisBound = 0.2
    high: AxisBound = 0.2
    dual: float | None = None

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            bound = getattr(self, name)
            if not (callable(bound) or isinstance(bound, Tensor)):
                within(self, "(0, inf)", name, optional=True)
        within(self, "(1, inf)", "dual", optional=True)

    def bounds(self, rollouts: RolloutBatch) -> tuple[Bound, Bound]:
        low, high = (
            float("inf") if bound is None else bound(rollouts) if callable(bound) else bound
            for bound in (self.low, self.high)
        )
        return low, high

    def __call__(
        self, ratio: Tensor, advantage: Tensor, log_ratio: Tensor, rollouts: RolloutBatch
    ) -> Tensor:
        return clip_surrogate(ratio, advantage, *self.bounds(rollouts), self.dual)

    def clipped(self, ratio: Tensor, advantage: Tensor, rollouts: RolloutBatch) -> Tensor:
        """True where the bound has stopped the gradient, [B, T]."""
        return ~unclipped(ratio, advantage, *self.bounds(rollouts), self.dual)


@dataclass(frozen=True)
class Truncated:
    """REINFORCE under an importance weight that is cut off: every token keeps a gradient (CISPO).

    Args:
        most: largest weight, > 0.
    """

    most: float = 5.0

    needs: ClassVar[tuple[str, ...]] = ("policy.logprob",)

    def __post_init__(self) -> None:
        within(self, "(0, inf)", "most")

    def __call__(
        self, ratio: Tensor, advantage: Tensor, log_ratio: Tensor, rollouts: RolloutBatch
    ) -> Tensor:
        logprob = torch.where(rollouts.mask, rollouts.scores().need("logprob"), 0.0)
        return ratio.detach().clamp(max=self.most) * advantage.detach() * logprob

    def clipped(self, ratio: Tensor, advantage: Tensor, rollouts: RolloutBatch) -> Tensor:
        """True where the weight is cut off, [B, T]."""
        return ratio > self.most
