"""An f-divergence as elementwise functions of two log-probabilities.

    D_f(p || q) = Σ_v q_v f(p_v / q_v),   f convex, f(1) = 0

p is the reference (or teacher), q the policy (or student). The functions are all that a kernel
needs that walks over the vocabulary in pieces. The divergences themselves are in `divergences`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tokenry.core.errors import InputError
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

    Args:
        link: behind `derivative` and `inverse_derivative`, where it has them.
        inverse_link: behind `derivative` and `inverse_derivative`, where it has them.
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
