"""What the f-divergences of `core.divergences` are made of: elementwise functions, in log space.

Kernels take (p_logprob, q_logprob), tensors of one shape and dtype, and are written out for each
divergence, because q f(p / q) overflows where its value does not:

    *_term             q f(u), u = p / q
    *_slope            d term / d log q = q (f(u) - u f'(u))
    *_reference_slope  d term / d log p = p f'(u)

Links take log_ratio = log q - log p, the log-ratio of policy and reference. With t = q / p the term
is p g(t), g(t) = t f(1/t), and

    *_link             g'(t), by convention 0 at t = 1
    *_inverse          log t at which the link has a given value; ±inf beyond the values it takes

They are ordinary differentiable expressions. Exponents stop at 45 % of the largest that the dtype
can represent (40 in float32), so that sums and squares of links are finite; there is no gradient
beyond.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

Kernel = Callable[[Tensor, Tensor], Tensor]
NEGATIVE_INFINITY = float("-inf")


# ---- kernels


def kl_term(lp: Tensor, lq: Tensor) -> Tensor:
    p = lp.exp()
    return (lp - lq).mul_(p).masked_fill_(p == 0, 0.0)


def kl_slope(lp: Tensor, lq: Tensor) -> Tensor:
    return lp.exp().neg_()


def kl_reference_slope(lp: Tensor, lq: Tensor) -> Tensor:
    p = lp.exp()
    return (lp - lq).add_(1).mul_(p).masked_fill_(p == 0, 0.0)


def swapped(kernel: Kernel, lp: Tensor, lq: Tensor) -> Tensor:
    return kernel(lq, lp)


def jeffreys_term(lp: Tensor, lq: Tensor) -> Tensor:
    gap = lp.exp().sub_(lq.exp())
    return (lp - lq).mul_(gap).masked_fill_(gap == 0, 0.0)


def jeffreys_slope(lp: Tensor, lq: Tensor) -> Tensor:
    return kl_reference_slope(lq, lp).sub_(lp.exp())


def mixture_logprob(lp: Tensor, lq: Tensor, weight: float) -> Tensor:
    """log(weight p + (1 - weight) q)."""
    return torch.logaddexp(lp + math.log(weight), lq + math.log1p(-weight))


def to_mixture(own: Tensor, mixture: Tensor, weight: float) -> Tensor:
    """weight · own · log(own / mixture), in place over nothing but its own result."""
    mass = own.exp()
    return (own - mixture).mul_(mass).mul_(weight).masked_fill_(mass == 0, 0.0)


def js_term(lp: Tensor, lq: Tensor, beta: float) -> Tensor:
    mixture = mixture_logprob(lp, lq, beta)
    return to_mixture(lp, mixture, beta).add_(to_mixture(lq, mixture, 1 - beta))


def js_slope(lp: Tensor, lq: Tensor, beta: float) -> Tensor:
    return to_mixture(lq, mixture_logprob(lp, lq, beta), 1 - beta)


def js_reference_slope(lp: Tensor, lq: Tensor, beta: float) -> Tensor:
    return to_mixture(lp, mixture_logprob(lp, lq, beta), beta)


def skew_term(lp: Tensor, lq: Tensor, lam: float) -> Tensor:
    return to_mixture(lp, mixture_logprob(lp, lq, lam), 1.0)


def skew_slope(lp: Tensor, lq: Tensor, lam: float) -> Tensor:
    # -(1-λ) p q / m; where either is 0 so is the product, and -inf - (-inf) must not be formed
    share = (lq - mixture_logprob(lp, lq, lam)).add_(lp).exp_().mul_(lam - 1)
    return share.masked_fill_(lp == NEGATIVE_INFINITY, 0.0)


def skew_reference_slope(lp: Tensor, lq: Tensor, lam: float) -> Tensor:
    return skew_term(lp, lq, lam).sub_(skew_slope(lp, lq, lam))  # both finite


def variation_term(lp: Tensor, lq: Tensor) -> Tensor:
    return lp.exp().sub_(lq.exp()).abs_().mul_(0.5)


def variation_slope(lp: Tensor, lq: Tensor) -> Tensor:
    q = lq.exp()
    return (q - lp.exp()).sign_().mul_(q).mul_(0.5)


def hellinger_term(lp: Tensor, lq: Tensor) -> Tensor:
    return (lp / 2).exp_().sub_((lq / 2).exp_()).square_().mul_(0.5)


def hellinger_slope(lp: Tensor, lq: Tensor) -> Tensor:
    return lq.exp().sub_((lp + lq).mul_(0.5).exp_()).mul_(0.5)


def chi_term(lp: Tensor, lq: Tensor) -> Tensor:
    # (p - q)² / q through logs: 1 / q overflows long before the quotient does
    gap = lp.exp().sub_(lq.exp()).abs_()
    return gap.log().mul_(2).sub_(lq).exp_().masked_fill_(gap == 0, 0.0)


def square_over(lp: Tensor, lq: Tensor) -> Tensor:
    return (2 * lp).sub_(lq).exp_().masked_fill_(lp == NEGATIVE_INFINITY, 0.0)


def chi_slope(lp: Tensor, lq: Tensor) -> Tensor:
    return lq.exp().sub_(square_over(lp, lq))


def chi_reference_slope(lp: Tensor, lq: Tensor) -> Tensor:
    return square_over(lp, lq).sub_(lp.exp()).mul_(2)


def geometric(lp: Tensor, lq: Tensor, a: float) -> Tensor:
    """p^a q^(1-a), 0 where both are 0."""
    mixed = (lp * a).add_(lq, alpha=1 - a).exp_()
    if a > 1:
        mixed.masked_fill_(lp == NEGATIVE_INFINITY, 0.0)
    elif a < 0:
        mixed.masked_fill_(lq == NEGATIVE_INFINITY, 0.0)
    return mixed


def alpha_term(lp: Tensor, lq: Tensor, a: float) -> Tensor:
    linear = lp.exp().mul_(a).add_(lq.exp(), alpha=1 - a)
    return geometric(lp, lq, a).sub_(linear).div_(a * (a - 1))


def alpha_slope(lp: Tensor, lq: Tensor, a: float) -> Tensor:
    return lq.exp().sub_(geometric(lp, lq, a)).div_(a)


def alpha_reference_slope(lp: Tensor, lq: Tensor, a: float) -> Tensor:
    return geometric(lp, lq, a).sub_(lp.exp()).div_(a - 1)


def scaled(kernel: Kernel, lp: Tensor, lq: Tensor, factor: float) -> Tensor:
    return kernel(lp, lq).mul_(factor)


# ---- links and their inverses


def power_link(log_ratio: Tensor, a: float, scale: float = 1.0) -> Tensor:
    """scale (1 - t^-a) / a, and its limit scale log t at a = 0."""
    if a == 0:
        return scale * log_ratio
    largest = 0.45 * math.log(torch.finfo(log_ratio.dtype).max)
    return torch.expm1((-a * log_ratio).clamp_max(largest)) * (-scale / a)


def power_inverse(value: Tensor, a: float, scale: float = 1.0) -> Tensor:
    if a == 0:
        return value / scale
    return torch.log1p((value * (-a / scale)).clamp_min(-1)) / -a


def js_link(log_ratio: Tensor, beta: float, scale: float = 1.0) -> Tensor:
    """-scale (1-β) log(β / t + 1-β); at most -scale (1-β) log(1-β)."""
    odds = math.log(beta) - math.log1p(-beta)
    return scale * (1 - beta) * (logsigmoid(log_ratio - odds) - math.log1p(-beta))


def js_inverse(value: Tensor, beta: float, scale: float = 1.0) -> Tensor:
    value = value / (scale * (1 - beta))
    share = torch.exp((value + math.log1p(-beta)).clamp_max(0))  # of q in the mixture
    return value + math.log(beta) - torch.log1p(-share)


def jeffreys_link(log_ratio: Tensor) -> Tensor:
    """log t + 1 - 1/t."""
    return log_ratio + power_link(log_ratio, 1)


def variation_link(log_ratio: Tensor) -> Tensor:
    """sign(log t) / 2."""
    return log_ratio.sign() / 2


def skew_link(log_ratio: Tensor, lam: float) -> Tensor:
    """(1-λ) (1 - 1 / (λ + (1-λ) t)); between 1-λ and -(1-λ)² / λ."""
    # 1 / (1 + (1-λ)/λ t) is a sigmoid, so that a large t does not overflow
    odds = math.log1p(-lam) - math.log(lam)
    return (1 - lam) * (1 - torch.sigmoid(-log_ratio - odds) / lam)


def skew_reverse_link(log_ratio: Tensor, lam: float) -> Tensor:
    """log(t / (λ t + 1-λ)) - λ t / (λ t + 1-λ) + λ."""
    kept = log_ratio + math.log(lam) - math.log1p(-lam)
    return logsigmoid(kept) - math.log(lam) - torch.sigmoid(kept) + lam
