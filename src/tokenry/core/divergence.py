"""Divergences between next-token distributions, exact and in log space.

    D_f(p || q) = Σ_v q_v f(p_v / q_v),   f convex, f(1) = 0

p is the reference (or teacher), q the policy (or student). Both are given as logits to
`divergence`, or as log-probabilities to the elementwise functions of an `FDivergence`, which is all
that a kernel needs that walks over the vocabulary in pieces. Also here: the Rényi divergence, which
is no f-divergence, and the Monte-Carlo estimators k1, k2, k3 of KL(policy || reference).

Zeros: a token that both distributions exclude (-inf in both) contributes 0 and has no gradient; one
that p excludes contributes q f(0), one that q excludes p f'(∞). Either may be infinite, and where
the divergence is infinite its gradient is not defined. A probability that underflows to 0 counts
as 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tokenry.core import generators
from tokenry.core.aggregate import full_precision
from tokenry.core.checks import in_range, within
from tokenry.core.errors import InputError, ShapeError, UnknownNameError, VocabularyError
from tokenry.core.generators import NEGATIVE_INFINITY, Kernel

Elementwise = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class FDivergence:
    """One f-divergence: a name and three elementwise functions of (p_logprob, q_logprob).

    term             q f(u), with u = p / q: a token's contribution; its sum is the divergence.
    slope            d term / d q_logprob = q (f(u) - u f'(u)).
    reference_slope  d term / d p_logprob = p f'(u).

    They are written out for each divergence, not derived from f (see `core.generators`). Two
    divergences of the same name are equal. `from_generator` makes one from f.

    link, inverse_link: behind `derivative` and `inverse_derivative`, where it has them.
    """

    name: str
    term: Kernel = field(repr=False, compare=False)
    slope: Kernel = field(repr=False, compare=False)
    reference_slope: Kernel = field(repr=False, compare=False)
    link: Elementwise | None = field(default=None, repr=False, compare=False)
    inverse_link: Elementwise | None = field(default=None, repr=False, compare=False)

    def terms(self, p_logprob: Tensor, q_logprob: Tensor) -> Tensor:
        """Contributions q f(p / q), differentiable (once) in both arguments."""
        if torch.is_grad_enabled() and (p_logprob.requires_grad or q_logprob.requires_grad):
            return _Terms.apply(p_logprob, q_logprob, self)  # pyright: ignore[reportReturnType]
        return self.term(p_logprob, q_logprob)

    @torch.no_grad()
    def slopes(self, p_logprob: Tensor, q_logprob: Tensor) -> Tensor:
        """d terms / d q_logprob, the other log-probabilities held fixed."""
        return self.slope(p_logprob, q_logprob)

    @torch.no_grad()
    def reference_slopes(self, p_logprob: Tensor, q_logprob: Tensor) -> Tensor:
        """d terms / d p_logprob, the other log-probabilities held fixed."""
        return self.reference_slope(p_logprob, q_logprob)

    # A term is homogeneous, (c p, c q) -> c term, so the generator is the term at q = 1 and its
    # derivative, which does not change under scaling, the reference slope at p = 1.

    def f(self, log_u: Tensor) -> Tensor:
        """The generator at u = exp(log_u); f(-inf) is its value at u = 0."""
        return self.terms(log_u, torch.zeros_like(log_u))

    def f_prime(self, log_u: Tensor) -> Tensor:
        """df / du at u = exp(log_u); f_prime(inf) is the slope at infinity."""
        return self.reference_slopes(torch.zeros_like(log_u), -log_u)

    # Papers that regularise a policy write D = E_ref[g(π / π_ref)], with the ratio the other way
    # round: g(t) = t f(1 / t). So that a divergence keeps its one name, it is g' that stands here.

    def derivative(self, log_ratio: Tensor) -> Tensor:
        """dD / dq_v where q_v = p_v exp(log_ratio): how the divergence grows with a policy's
        probability, as a function of log q - log p = log(policy / reference). Differentiable.

        That is g'(t) with g(t) = t f(1 / t) and t = exp(log_ratio), up to the constant that makes
        it 0 at t = 1; adding c (t - 1) to g changes no divergence. REVERSE_KL gives log_ratio,
        FORWARD_KL 1 - exp(-log_ratio), JENSEN_SHANNON log(2t / (1+t)) / 2.
        """
        if self.link is None:
            raise InputError(
                f"divergence {self.name!r} has no `link`, its derivative in the log-ratio; give it "
                "one with dataclasses.replace(divergence, link=...)"
            )
        return self.link(log_ratio)

    def inverse_derivative(self, value: Tensor) -> Tensor:
        """The log_ratio at which `derivative` is `value`: +inf above all its values, -inf below."""
        if self.inverse_link is None:
            raise InputError(
                f"the derivative of divergence {self.name!r} has no inverse in closed form; the "
                "Kullback-Leibler, Jensen-Shannon, Hellinger, alpha and chi-squared ones have"
            )
        return self.inverse_link(value)

    @staticmethod
    def from_generator(
        name: str, f: Callable[[Tensor], Tensor], f_prime: Callable[[Tensor], Tensor]
    ) -> FDivergence:
        """A divergence from f and f' as functions of log u, both defined at ±inf too.

        Needs u f'(u) representable: good for |log p - log q| < 80, the built-in ones go further.
        """
        term, slope, reference_slope = (
            partial(kernel, f=f, f_prime=f_prime) for kernel in (_term_of, _slope_of, _reference_of)
        )
        return FDivergence(name, term, slope, reference_slope)


@dataclass(frozen=True)
class Comparison:
    """How two distributions are compared at every token.

    kind: the divergence D(p || q), p the reference's or teacher's. temperature: divides the logits
    of both, > 0; no factor temperature^2 is applied. top_k: compare on p's likeliest tokens only,
    >= 1; None is the whole vocabulary. tail: with one bucket for all the others (a lower bound);
    False leaves them out. See `divergence`.
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


# Estimators of KL(policy || reference) from tokens sampled from the policy, as functions of
# log_ratio = policy_logprob - reference_logprob of the sampled token, of any shape.


def k1(log_ratio: Tensor) -> Tensor:
    """log_ratio. Unbiased; its variance is large and single values may be negative."""
    return full_precision(log_ratio)


def k2(log_ratio: Tensor) -> Tensor:
    """log_ratio² / 2. Biased: agrees with the KL to second order in log_ratio only. Never negative.

    Its gradient through policy_logprob, unlike that of k1 and k3, is the KL's in the mean.
    """
    return _where_finite(log_ratio, lambda x: x.square() / 2)


def k3(log_ratio: Tensor) -> Tensor:
    """exp(-log_ratio) - 1 + log_ratio. Unbiased where the policy covers the reference's support.

    Infinite for a token that either side excludes.

    Never negative, and mostly of smaller variance than k1, whose control variate it is. Mass that
    the policy excludes is missing from the mean: it is then too low by the reference's mass there.
    """
    return _where_finite(log_ratio, lambda x: torch.expm1(-x) + x)


def _where_finite(log_ratio: Tensor, estimator: Elementwise) -> Tensor:
    """The estimator in float32 at least; +inf without gradient where the log-ratio is infinite."""
    log_ratio = full_precision(log_ratio)
    infinite = log_ratio.isinf()
    return estimator(log_ratio.masked_fill(infinite, 0.0)).masked_fill(infinite, math.inf)


# ---- the divergences


def _reversed(name: str, kind: FDivergence, *links: Elementwise) -> FDivergence:
    """D(q || p): each role's slope is the other's."""
    swapped = generators.swapped
    return FDivergence(
        name,
        partial(swapped, kind.term),
        partial(swapped, kind.reference_slope),
        partial(swapped, kind.slope),
        *links,
    )


def _power(a: float, scale: float = 1.0) -> tuple[Elementwise, Elementwise]:
    """The links of scale · alpha(a): of both KLs, Hellinger, chi-squared."""
    return (
        partial(generators.power_link, a=a, scale=scale),
        partial(generators.power_inverse, a=a, scale=scale),
    )


FORWARD_KL = FDivergence(
    "forward_kl",
    generators.kl_term,
    generators.kl_slope,
    generators.kl_reference_slope,
    *_power(1),
)
"""KL(p || q) = Σ p log(p / q); f(u) = u log u. Infinite when q excludes a token of p."""

REVERSE_KL = _reversed("reverse_kl", FORWARD_KL, *_power(0))
"""KL(q || p) = Σ q log(q / p); f(u) = -log u. Infinite when p excludes a token of q."""

JEFFREYS = FDivergence(
    "jeffreys",
    generators.jeffreys_term,
    generators.jeffreys_slope,
    partial(generators.swapped, generators.jeffreys_slope),
    generators.jeffreys_link,
)
"""KL(p || q) + KL(q || p) = Σ (p - q) log(p / q); f(u) = (u - 1) log u."""


def jensen_shannon(beta: float = 0.5) -> FDivergence:
    """β KL(p || m) + (1-β) KL(q || m), m = β p + (1-β) q, 0 < β < 1; at most ln 2 for β = 1/2.

    f(u) = β u log(u / m) - (1-β) log m, with m = β u + 1 - β.
    """
    in_range("beta", beta, "(0, 1)")
    return FDivergence(
        "jensen_shannon" if beta == 0.5 else f"jensen_shannon:{beta:g}",
        partial(generators.js_term, beta=beta),
        partial(generators.js_slope, beta=beta),
        partial(generators.js_reference_slope, beta=beta),
        partial(generators.js_link, beta=beta),
        partial(generators.js_inverse, beta=beta),
    )


JENSEN_SHANNON = jensen_shannon()
"""KL(p || m)/2 + KL(q || m)/2 with m = (p + q)/2: symmetric, between 0 and ln 2."""

JENSEN_SHANNON_SUM = FDivergence(
    "jensen_shannon_sum",
    partial(generators.scaled, JENSEN_SHANNON.term, factor=2.0),
    partial(generators.scaled, JENSEN_SHANNON.slope, factor=2.0),
    partial(generators.scaled, JENSEN_SHANNON.reference_slope, factor=2.0),
    partial(generators.js_link, beta=0.5, scale=2.0),
    partial(generators.js_inverse, beta=0.5, scale=2.0),
)
"""KL(p || m) + KL(q || m), twice JENSEN_SHANNON: the scale of f-GAN, f-DPO and f-DPG."""


def skew_kl(lam: float = 0.1) -> FDivergence:
    """KL(p || λ p + (1-λ) q), 0 <= λ < 1; f(u) = u log(u / (λ u + 1 - λ)). At most -log λ.

    λ = 0 is FORWARD_KL.
    """
    in_range("lam", lam, "[0, 1)")
    if lam == 0:
        return FORWARD_KL
    return FDivergence(
        f"skew_kl:{lam:g}",
        partial(generators.skew_term, lam=lam),
        partial(generators.skew_slope, lam=lam),
        partial(generators.skew_reference_slope, lam=lam),
        partial(generators.skew_link, lam=lam),
    )


def skew_reverse_kl(lam: float = 0.1) -> FDivergence:
    """KL(q || λ q + (1-λ) p), 0 <= λ < 1; f(u) = -log(λ + (1-λ) u). λ = 0 is REVERSE_KL."""
    if lam == 0:
        return REVERSE_KL
    link = partial(generators.skew_reverse_link, lam=lam)
    return _reversed(f"skew_reverse_kl:{lam:g}", skew_kl(lam), link)


TOTAL_VARIATION = FDivergence(
    "total_variation",
    generators.variation_term,
    generators.variation_slope,
    partial(generators.swapped, generators.variation_slope),
    generators.variation_link,
)
"""Σ |p - q| / 2, between 0 and 1; f(u) = |u - 1| / 2, whose slope at u = 1 is taken as 0."""

SQUARED_HELLINGER = FDivergence(
    "squared_hellinger",
    generators.hellinger_term,
    generators.hellinger_slope,
    partial(generators.swapped, generators.hellinger_slope),
    *_power(0.5, 0.25),
)
"""Σ (√p - √q)² / 2 = 1 - Σ √(p q), between 0 and 1; f(u) = (√u - 1)² / 2."""

CHI_SQUARED = FDivergence(
    "chi_squared",
    generators.chi_term,
    generators.chi_slope,
    generators.chi_reference_slope,
    *_power(2, 2),
)
"""Pearson's Σ (p - q)² / q; f(u) = (u - 1)²."""

REVERSE_CHI_SQUARED = _reversed("reverse_chi_squared", CHI_SQUARED, *_power(-1, 2))
"""Neyman's Σ (p - q)² / p; f(u) = (1 - u)² / u."""


def alpha(a: float) -> FDivergence:
    """(Σ p^a q^(1-a) - 1) / (a (a-1)); f(u) = (u^a - a u - (1-a)) / (a (a-1)), any real a.

    a = 1 is FORWARD_KL and a = 0 REVERSE_KL (their limits), a = 1/2 is 4 squared Hellinger,
    a = 2 half of CHI_SQUARED. The absolute error in float32 is about 1e-7 / |a (a-1)|.
    """
    in_range("alpha", a, "(-inf, inf)")
    if a in (0, 1):
        return FORWARD_KL if a == 1 else REVERSE_KL
    return FDivergence(
        f"alpha:{a:g}",
        partial(generators.alpha_term, a=a),
        partial(generators.alpha_slope, a=a),
        partial(generators.alpha_reference_slope, a=a),
        *_power(a),
    )


DIVERGENCES: dict[str, FDivergence] = {
    kind.name: kind
    for kind in (
        FORWARD_KL,
        REVERSE_KL,
        JEFFREYS,
        JENSEN_SHANNON,
        JENSEN_SHANNON_SUM,
        TOTAL_VARIATION,
        SQUARED_HELLINGER,
        CHI_SQUARED,
        REVERSE_CHI_SQUARED,
    )
}
FAMILIES: dict[str, Callable[[float], FDivergence]] = {
    "alpha": alpha,
    "jensen_shannon": jensen_shannon,
    "skew_kl": skew_kl,
    "skew_reverse_kl": skew_reverse_kl,
}


def divergence_named(name: str) -> FDivergence:
    """Look up "forward_kl", or a member of a family as "alpha:0.5"."""
    if name in DIVERGENCES:
        return DIVERGENCES[name]
    family, colon, parameter = name.partition(":")
    if family not in FAMILIES:
        raise UnknownNameError("divergence", name, [*DIVERGENCES, *(f"{k}:0.5" for k in FAMILIES)])
    if not colon:
        raise InputError(f"divergence {name!r} needs its parameter, for example '{name}:0.5'")
    try:
        value = float(parameter)
    except ValueError:
        raise InputError(f"{parameter!r} in divergence {name!r} is not a number") from None
    return FAMILIES[family](value)


# ---- machinery


class _Terms(torch.autograd.Function):
    """Written slopes instead of recorded ones: no NaN from 0 · inf, and nothing kept but inputs."""

    @staticmethod
    def forward(ctx: Any, p_logprob: Tensor, q_logprob: Tensor, kind: FDivergence) -> Tensor:
        ctx.save_for_backward(p_logprob, q_logprob)
        ctx.kind = kind
        return kind.term(p_logprob, q_logprob)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        pair, kind = ctx.saved_tensors, ctx.kind
        unused = gradients[0] == 0  # 0 times an infinite slope is 0 here: nothing asked for it
        slopes = (kind.reference_slope, kind.slope)
        to_p, to_q = (
            slope(*pair).mul_(gradients[0]).masked_fill_(unused, 0.0) if needed else None
            for slope, needed in zip(slopes, ctx.needs_input_grad, strict=False)
        )
        return to_p, to_q, None


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


def _ratio(lp: Tensor, lq: Tensor) -> Tensor:
    both = (lp == NEGATIVE_INFINITY) & (lq == NEGATIVE_INFINITY)
    return (lp - lq).masked_fill_(both, 0.0)


def _term_of(lp: Tensor, lq: Tensor, f: Any, f_prime: Any) -> Tensor:
    p, q, log_u = lp.exp(), lq.exp(), _ratio(lp, lq)
    beyond = torch.where(p == 0, 0.0, p * f_prime(torch.full_like(lp, math.inf)))
    return torch.where(q == 0, beyond, q * f(log_u))


def _slope_of(lp: Tensor, lq: Tensor, f: Any, f_prime: Any) -> Tensor:
    p, q, log_u = lp.exp(), lq.exp(), _ratio(lp, lq)
    through_f = torch.where(p == 0, 0.0, p * f_prime(log_u))
    return torch.where(q == 0, 0.0, q * f(log_u) - through_f)


def _reference_of(lp: Tensor, lq: Tensor, f: Any, f_prime: Any) -> Tensor:
    p = lp.exp()
    return torch.where(p == 0, 0.0, p * f_prime(_ratio(lp, lq)))
