"""f-DPO: DPO under any f-divergence that forbids the policy to give up what the reference allows.

    r(x, y) = beta g'( pi*(y|x) / pi_ref(y|x) ) + const(x)          at the maximiser pi* of
              E[r] - beta D(pi_ref || pi),   D = E_ref g(pi / pi_ref)
    loss    = -log sigmoid( beta [ g'(t_w) - g'(t_l) ] ),   log t = sum_t log pi(y_t) / pi_ref(y_t)

y_w is the chosen and y_l the rejected completion of x, pi the policy, pi_ref the frozen reference.
Where g' is unbounded at 0 the optimum excludes nothing, so no multiplier but that of the sum to 1
appears, and the constant cancels in the pair as in DPO. With l = log t:

    f_divergence          g'(t)                   reward as the policy leaves the reference
    reverse_kl            l                       DPO: even both ways; most alignment
    forward_kl            1 - exp(-l)             bounded above, exponential below: most diversity
    alpha:A  (0 < A < 1)  (1 - exp(-A l)) / A     between the two
    jensen_shannon_sum    log 2t / (1 + t)        bounded above by ln 2, DPO-like below

Source: Beyond Reverse KL: Generalizing Direct Preference Optimization with Diverse Divergence
Constraints (arXiv 2309.16240). Its Jensen-Shannon divergence is the sum of both KLs; plain
"jensen_shannon", their mean, is the same at half the beta. Constants of g' are dropped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokenry.core.aggregate import full_precision
from tokenry.core.batch import TokenBatch
from tokenry.core.checks import in_range, within
from tokenry.core.divergences import divergence_named
from tokenry.core.errors import InputError, ShapeError
from tokenry.core.f_divergence import FDivergence
from tokenry.core.scores import Scores
from tokenry.learn.objective import Loss, Objective, Unit, objective
from tokenry.learn.preference.weighted import pair_loss, preference_loss


def f_dpo_loss(
    chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, *, beta: float, divergence: FDivergence
) -> Tensor:
    """Loss of each pair, [B], from the sequence log-ratios log t of both sides, [B] each."""
    sides = map(full_precision, (chosen_log_ratio, rejected_log_ratio))
    chosen, rejected = map(divergence.derivative, sides)
    return pair_loss(beta * (chosen - rejected))


@objective("f-dpo", paper=172)
@dataclass(frozen=True)
class FDPO(Objective):
    """DPO with a divergence of one's choice: more diversity for a little less alignment.

    beta: strength of the pull towards the reference, in (0, inf); the paper uses 0.1. The same beta
        is a twice weaker reward scale under jensen_shannon_sum, whose g' has slope 1/2 at l = 0.
    f_divergence: a name of `core.divergences` or an `FDivergence`. Under forward_kl and large A a
        pair of long completions soon has no gradient left: exp(-l) spans too many magnitudes.
    """

    beta: float = 0.1
    f_divergence: FDivergence | str = "jensen_shannon_sum"

    needs: ClassVar[tuple[str, ...]] = ("policy.logprob", "reference.logprob")
    unit: ClassVar[Unit] = "pair"
    at_reference: ClassVar[float] = math.log(2)

    def __post_init__(self) -> None:
        within(self, "(0, inf)", "beta")
        kind = resolved(self.f_divergence)
        if not has_barrier(kind):
            raise InputError(
                f"f-DPO cannot use the divergence {kind.name!r}: its slope at probability 0 is "
                "finite, so that its optimum may exclude completions and the reward is no longer a "
                "function of the ratio; use reverse_kl, forward_kl, jensen_shannon_sum or alpha:0.5"
            )

    def __call__(
        self, batch: TokenBatch, policy: Scores, reference: Scores | None, **_: object
    ) -> Loss:
        link = resolved(self.f_divergence).derivative
        return preference_loss(batch, policy, reference, beta=self.beta, link=link)


def resolved(divergence: FDivergence | str) -> FDivergence:
    return divergence_named(divergence) if isinstance(divergence, str) else divergence


def has_barrier(divergence: FDivergence) -> bool:
    """Whether the derivative falls to -inf as the policy's probability falls to 0."""
    infinite = torch.tensor([math.inf])
    # The slope is exact for p / q = inf, where the link may clamp; the link where it is NaN.
    limits = (divergence.slope(infinite, torch.zeros(1)), divergence.derivative(-infinite))
    return any(bool((limit == -math.inf).all()) for limit in limits)


def optimal_policy(
    reference_logprob: Tensor, reward: Tensor, *, beta: float, divergence: FDivergence
) -> Tensor:
    """log pi* [..., V], the maximiser of E_pi[r] - beta D(pi_ref || pi) over V outcomes; float64.

    pi* = pi_ref (g')^-1((r - c) / beta) with the c, found by bisection, that makes it sum to 1; an
    outcome below the values of g' gets probability 0. One that the reference excludes costs
    beta g'(inf) per unit of probability: where that is finite and its reward worth it, it takes
    all that is left over (shared among equals), which is the limit of ever smaller pi_ref.

    beta: in (0, inf). Rewards must be finite. Any divergence with an `inverse_derivative`.
    """
    if reference_logprob.shape != reward.shape:
        raise ShapeError(
            f"reference_logprob and reward must have one shape, got "
            f"{list(reference_logprob.shape)} and {list(reward.shape)}"
        )
    in_range("beta", beta, "(0, inf)")
    if not bool(reward.isfinite().all()):
        raise InputError("rewards must be finite; exclude outcomes by a reference_logprob of -inf")
    excluded = reference_logprob == -math.inf
    if bool(excluded.all(-1).any()):
        raise InputError("a reference that excludes every outcome has no optimal policy")
    base, reward = reference_logprob.double().log_softmax(-1), reward.double()

    def policy(constant: Tensor) -> Tensor:
        gained = divergence.inverse_derivative((reward - constant) / beta)
        return torch.where(excluded, -math.inf, base + gained)

    # g'(1) = 0: at c = min r no outcome loses probability, at c = max r none gains any
    low = reward.masked_fill(excluded, math.inf).amin(-1, keepdim=True)
    high = reward.masked_fill(excluded, -math.inf).amax(-1, keepdim=True)
    for _ in range(100):
        middle = (low + high) / 2
        too_much = policy(middle).logsumexp(-1, keepdim=True) > 0
        low, high = torch.where(too_much, middle, low), torch.where(too_much, high, middle)
    # Excluded outcomes are worth r - beta g'(inf) each: c cannot be less.
    dearest = divergence.derivative(torch.full_like(high, math.inf))
    worth = torch.where(excluded, reward - beta * dearest, -math.inf)
    floor = worth.amax(-1, keepdim=True)
    found = policy(torch.maximum(high, floor))
    left_over = -torch.expm1(found.logsumexp(-1, keepdim=True))
    takes = (worth == floor) & (floor > high)
    share = (left_over.clamp_min(0) / takes.sum(-1, keepdim=True).clamp_min(1)).log()
    return torch.where(takes, share, found).log_softmax(-1)
