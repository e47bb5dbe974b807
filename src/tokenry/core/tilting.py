r"""Alignment in closed form: exponential tilting and best-of-n of a finite distribution.

For outcomes y with base probabilities p and reward r:

    tilt         phi(y) = p(y) exp(alpha r(y)) / Z          the maximiser of E[r] at its KL(. || p)
    partition    Lambda(alpha) = log E_p exp(alpha r);  E_phi r = Lambda'(alpha)
    its KL       KL(phi || p) = alpha Lambda'(alpha) - Lambda(alpha), which grows with alpha >= 0
    best-of-n    pi_n(y) = p(y) (F^n - F-^n) / (F - F-),  F = P(r <= r(y)),  F- = P(r < r(y))
    its KL       KL(pi_n || p) <= log n - (n - 1) / n

For every distribution w and the tilt with KL(phi || p) = Delta,

    KL(w || phi) = [KL(w || p) - Delta] + alpha [E_phi r - E_w r],

so that whoever reaches the tilt's reward at the tilt's KL *is* the tilt. A source of m independent
symbols with additive reward has Lambda_m = m Lambda, and best-of-n with n = exp(m delta) nears the
tilt of KL m delta: in reward per symbol, and in KL(pi_n || phi) per symbol. (Not in the other
direction: best-of-n has hardly any lower tail.)

Everything works on log-probabilities [..., V], in float64, batches at once, and differentiably
(except `alpha_for_kl`). Outcomes of probability 0 (-inf) stay so and have no gradient.

Source: Asymptotics of Language Model Alignment (arXiv 2404.01730); the tie-aware best-of-n
probabilities are derived here.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenry.core.aggregate import full_precision
from tokenry.core.checks import in_range
from tokenry.core.errors import InputError, ShapeError

LOWEST = -1e30  # stands for -inf where differences are taken
TINY = -36.0  # x and log(1 - exp(-exp(x))) are one number in float64 from here down


def tilt(logprob: Tensor, reward: Tensor, alpha: float | Tensor) -> Tensor:
    """Log-probabilities of the tilt p exp(alpha r) / Z, [..., V]. alpha: a number or [...]."""
    logprob, reward = _checked(logprob, reward)
    return (logprob + _per_row(alpha, reward) * reward).log_softmax(-1)


def log_partition(logprob: Tensor, reward: Tensor, alpha: float | Tensor) -> Tensor:
    """Lambda(alpha) = log E_p exp(alpha r), [...]."""
    logprob, reward = _checked(logprob, reward)
    return (logprob + _per_row(alpha, reward) * reward).logsumexp(-1)


@torch.no_grad()
def alpha_for_kl(logprob: Tensor, reward: Tensor, kl: float | Tensor) -> Tensor:
    """The alpha >= 0 whose tilt lies at KL(phi || p) = kl nats, [...], by bracketed Newton steps.

    Raises InputError where no alpha does: the limit is -log p(the outcomes of highest reward).
    """
    logprob, reward = _checked(logprob, reward)
    best = reward == _on_support(logprob, reward).amax(-1, keepdim=True)
    limit = -logprob.masked_fill(~best, -math.inf).logsumexp(-1)
    wanted = torch.as_tensor(kl, dtype=torch.float64, device=limit.device).expand(limit.shape)
    if bool(((wanted < 0) | (wanted >= limit) & (wanted > 0)).any()):
        raise InputError(
            f"no tilt has a KL of {float(wanted.max()):g} nats: it must be at least 0 and below "
            f"-log p(best outcomes) = {float(limit.min()):g}"
        )

    centred = (reward - (logprob.exp() * reward).sum(-1, keepdim=True)).masked_fill(
        logprob == -math.inf, 0.0
    )
    low, high = torch.zeros_like(limit), torch.full_like(limit, math.inf)
    alpha = torch.ones_like(limit)
    for _ in range(200):
        joint = logprob + alpha[..., None] * centred
        total = joint.logsumexp(-1)
        probs = (joint - total[..., None]).exp_()
        mean = (probs * centred).sum(-1)
        kl_here = alpha * mean - total
        if bool(((kl_here - wanted).abs() <= 1e-12 * wanted + 1e-16).all()):
            break
        slope = alpha * ((probs * centred.square()).sum(-1) - mean.square())  # of KL in alpha
        below = kl_here < wanted
        low, high = torch.where(below, alpha, low), torch.where(below, high, alpha)
        step = alpha + (wanted - kl_here) / slope
        middle = torch.where(high.isfinite(), (low + high) / 2, 2 * low)
        sure = (step > low) & (step < high) & (step < 2 * middle)  # else the bracket is halved
        alpha = torch.where(sure, step, middle)
    return torch.where(wanted == 0, 0.0, alpha)


def best_of_n_distribution(logprob: Tensor, reward: Tensor, n: float) -> Tensor:
    """Log-probabilities of the best of n draws, [..., V]; equal rewards share by p.

    n may be any real number >= 1 (exp(m delta) is), up to 1e300.
    """
    logprob, reward = _checked(logprob, reward)
    in_range("n", n, "[1, 1e300]")
    order = reward.argsort(-1)
    ranked = reward.gather(-1, order)
    steps = (ranked[..., 1:] != ranked[..., :-1]).cumsum(-1)
    level = torch.cat([torch.zeros_like(order[..., :1]), steps], -1)  # outcomes of equal reward
    mass = _log_scatter(logprob.gather(-1, order), level)  # [..., V], by level
    empty = mass == -math.inf
    mass = mass.masked_fill(empty, LOWEST)
    below_or_at = mass.logcumsumexp(-1)
    above = mass.flip(-1).logcumsumexp(-1).flip(-1)
    above = torch.cat([above[..., 1:], torch.full_like(above[..., :1], LOWEST)], -1)
    # log F from the side on which it is exact: where F is near 1, n times its error would not be 0
    near_one = above < -math.log(2)
    beyond = torch.where(near_one, above, -1.0)
    log_f = torch.where(near_one, torch.log1p(-beyond.exp()), below_or_at)
    # log(F^n - F-^n) = n log F + log(1 - (F- / F)^n), with F- / F = 1 - exp(own). The exponent
    # n log(F- / F) is kept as the logarithm of its size: it is 0 long before that is -inf.
    own = mass - below_or_at  # log P(this level | this level or below)
    lowest = own == 0  # F- is 0
    own = own.masked_fill(lowest | empty, -1.0)
    size = torch.where(own < TINY, own, (-_log1mexp(own.clamp_min(TINY))).log()) + math.log(n)
    size = size.masked_fill(lowest, math.inf).clamp_max(10)  # exp(-exp(10)) is 0
    rest = torch.where(size < TINY, size, _log1mexp(-size.clamp_min(TINY).exp()))
    gain = (n * log_f + rest - mass).masked_fill(empty, 0.0)
    ranked_gain = gain.gather(-1, level)
    return logprob + torch.empty_like(ranked_gain).scatter(-1, order, ranked_gain)


def best_of_n_and_tilt(logprob: Tensor, reward: Tensor, n: float) -> tuple[Tensor, Tensor, Tensor]:
    """KL(best-of-n || p), best-of-n's expected reward, and that of the tilt at that KL, [...]."""
    best = best_of_n_distribution(logprob, reward, n)
    kl = kl_divergence(best, logprob)
    tilted = tilt(logprob, reward, alpha_for_kl(logprob, reward, kl))
    expected = [(policy.exp() * reward).sum(-1) for policy in (best, tilted)]
    return kl, expected[0], expected[1]


def best_of_n_kl_bound(n: float) -> float:
    """log n - (n - 1) / n: the most that best-of-n can diverge from its base, nats.

    Reached when no two outcomes have the same reward and each is unlikely.
    """
    return math.log(n) - (n - 1) / n


@dataclass(frozen=True)
class Alignment:
    """A source of m independent symbols, aligned in both ways; all numbers per symbol.

    alpha: of the tilt. limit: Lambda'(alpha), the tilt's reward, which best-of-n nears as m grows.
    reward: best-of-n's. gap: limit - reward. kl: KL(best-of-n || tilt). base_kl: KL(best-of-n ||
    base), at most delta.
    """

    alpha: float
    limit: float
    reward: float
    gap: float
    kl: float
    base_kl: float


def binomial_alignment(p: float, length: int, delta: float, reward: float = 1.0) -> Alignment:
    """`memoryless_alignment` of coin tosses: a symbol is 1, worth `reward`, with probability p."""
    logprob = torch.tensor([1 - p, p], dtype=torch.float64).log()
    return memoryless_alignment(logprob, [0.0, reward], length, delta)


def memoryless_alignment(
    logprob: Tensor, reward: Tensor | list[float], length: int, delta: float
) -> Alignment:
    """The tilt of KL m delta and best-of-exp(m delta) of m = `length` symbols, compared exactly.

    logprob, reward: [K], of one symbol; rewards add up. Sequences with the same counts of symbols
    (types) are one outcome, so that the work is polynomial in m. Totals that differ by no more than
    the rounding of the rewards' own dtype are one reward. length: >= 1. delta: nats per symbol, in
    [0, -log p(the best symbols)).
    """
    in_range("length", length, "[1, inf)", integer=True)
    in_range("delta", delta, "[0, inf)")
    in_range("length * delta, the logarithm of n,", length * delta, "[0, 690]")
    if not isinstance(reward, Tensor):
        reward = torch.tensor(reward, dtype=torch.float64)
    precise = reward.is_floating_point()
    rounding = torch.finfo(reward.dtype).eps if precise else 0.0
    logprob, reward = _checked(logprob, reward)
    mass, total = types(logprob, reward, length)
    total = _merged(total, 2 * rounding * length * float(reward.abs().max()))
    alpha = alpha_for_kl(logprob, reward, delta)
    tilted = tilt(mass, total, alpha)
    best = best_of_n_distribution(mass, total, math.exp(length * delta))
    limit = float((tilt(logprob, reward, alpha).exp() * reward).sum())
    mean_reward = float((best.exp() * total).sum()) / length
    return Alignment(
        alpha=float(alpha),
        limit=limit,
        reward=mean_reward,
        gap=limit - mean_reward,
        kl=float(kl_divergence(best, tilted)) / length,
        base_kl=float(kl_divergence(best, mass)) / length,
    )


def types(logprob: Tensor, reward: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Log-probability and total reward of every count vector of `length` symbols, [M] each."""
    symbols = len(logprob)
    places = range(length + symbols - 1)
    bars = list(itertools.combinations(places, symbols - 1))
    edges = torch.tensor([(-1, *bar, length + symbols - 1) for bar in bars], device=logprob.device)
    counts = (edges.diff(dim=-1) - 1).double()  # [M, K]
    ways = math.lgamma(length + 1) - torch.lgamma(counts + 1).sum(-1)
    chance = torch.where(counts > 0, counts * logprob, 0.0).sum(-1)
    return ways + chance, counts @ reward.double()


def kl_divergence(logprob: Tensor, base: Tensor) -> Tensor:
    """KL(p || base) over the last dimension, nats, in float32 at least.

    Outcomes of probability 0 add nothing; one that the base alone excludes makes it infinite, and
    has no gradient.
    """
    logprob, base = full_precision(logprob), full_precision(base)
    absent = logprob == -math.inf
    infinite = (base == -math.inf) & ~absent
    ratio = logprob.masked_fill(absent, 0.0) - base.masked_fill(absent | infinite, 0.0)
    return (logprob.exp() * ratio).masked_fill(infinite, math.inf).sum(-1)


def _checked(logprob: Tensor, reward: Tensor) -> tuple[Tensor, Tensor]:
    reward = reward.to(logprob.device, torch.float64)
    if reward.shape != logprob.shape:
        raise ShapeError(
            f"logprob and reward must have one shape, got {list(logprob.shape)} and "
            f"{list(reward.shape)}"
        )
    if not bool(reward.isfinite().all()):
        raise InputError("rewards must be finite; give impossible outcomes logprob -inf instead")
    logprob = logprob.double()
    if not bool(((logprob < math.inf).all(-1) & (logprob > -math.inf).any(-1)).all()):
        raise InputError("logprob must be numbers below +inf, and exclude no whole distribution")
    return logprob.log_softmax(-1), reward  # to float64 sums of 1, also from float32


def _per_row(alpha: float | Tensor, like: Tensor) -> Tensor:
    alpha = torch.as_tensor(alpha, dtype=torch.float64, device=like.device)
    if not bool(alpha.isfinite().all()):
        raise InputError(f"alpha must be finite, got {alpha.tolist()}")
    return alpha[..., None]


def _on_support(logprob: Tensor, reward: Tensor) -> Tensor:
    return reward.masked_fill(logprob == -math.inf, -math.inf)


def _log_scatter(logprob: Tensor, level: Tensor) -> Tensor:
    """Log of the summed probabilities of each level, [..., V]; -inf for a level without mass."""
    top = torch.full_like(logprob, -math.inf).scatter_reduce(-1, level, logprob, "amax").detach()
    top = top.masked_fill(top == -math.inf, 0.0)
    shifted = (logprob - top.gather(-1, level)).exp()
    total = torch.zeros_like(logprob).scatter_add(-1, level, shifted)
    empty = total == 0  # whose logarithm would have an infinite gradient
    return (total.masked_fill(empty, 1.0).log() + top).masked_fill(empty, -math.inf)


def _merged(values: Tensor, tolerance: float) -> Tensor:
    """The values [M], those of a chain of neighbours no further apart than `tolerance` made one."""
    ranked, order = values.sort()
    begins = torch.ones_like(ranked, dtype=torch.bool)
    begins[1:] = ranked.diff() > tolerance
    first = ranked[begins][begins.cumsum(0) - 1]
    return torch.empty_like(values).scatter(0, order, first)


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x <= 0, without losing digits at either end."""
    near = x > -math.log(2)
    one = torch.log(-torch.expm1(torch.where(near, x, -1.0)))
    return torch.where(near, one, torch.log1p(-torch.exp(torch.where(near, -1.0, x))))
