"""The f-divergences by name: their terms and slopes are written out in `generators`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tokenry.core import generators
from tokenry.core.checks import in_range
from tokenry.core.errors import InputError, UnknownNameError
from tokenry.core.f_divergence import Elementwise, FDivergence


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
