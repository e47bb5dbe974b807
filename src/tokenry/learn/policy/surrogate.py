"""Surrogates: what one ascends to improve a policy with samples of a slightly older one.

With u_t = pi(y_t|s_t) / pi_old(y_t|s_t) and the advantage A_t, per token,

    min( u_t A_t, clip(u_t, 1 - low, 1 + high) A_t )                     and, with dual_clip = c,
    max( that, c A_t )  where A_t < 0

is u_t A_t as long as u_t has not gone beyond its bound *in the direction that A_t wants*, and a
constant, without gradient, from the bound on. The second line also bounds the loss on a bad token
that has become much likelier. Bounds may be numbers or tensors that broadcast with u.

    mean over target tokens of  -clipped_surrogate(...)      is PPO's policy loss
    clip_surrogate(u, A, ...)                                the same for any other ratio u: of a
                                                             sequence, of a group, of a mixture

Sources: Proximal Policy Optimization Algorithms (arXiv 1707.06347), eq. 7; dual clip: Mastering
Complex Control in MOBA Games with Deep Reinforcement Learning (arXiv 1912.09729).
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenry.core.aggregate import full_precision
from tokenry.core.checks import in_range
from tokenry.core.errors import ShapeError

Bound = float | Tensor
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
