"""Posterior regularisation in generation: the nearest distribution that keeps expectations.

Every token v has features φ_k(v), the posterior is tilted by them, and the multipliers u are given
or fitted at each step:

    q(v) ∝ p(v) exp(-Σ_k u_k φ_k(v)),   u_k >= 0
    q = argmin KL(q || p)   subject to   E_q[φ_k] <= ε_k for all k

The fitted u maximise the concave dual  g(u) = -log Σ_v p(v) exp(-u·φ(v)) - u·ε,  and are told by
the Karush-Kuhn-Tucker conditions: u_k >= 0, E_q[φ_k] <= ε_k, u_k (E_q[φ_k] - ε_k) = 0. So a step at
which p satisfies the constraints is not touched at all. With an indicator φ and ε = 0 the
controller is a filter.

For events: φ = 1 for the tokens of what must not be answered, -1 for those of the answer, and
ε = 0 wants at every step at least as much mass on the answer's tokens.

Source: Event Knowledge Incorporation with Posterior Regularization for Event-Centric Question
Answering (arXiv 2305.04522), which learns u in training; after posterior regularisation (Ganchev et
al., 2010). Fitting u at each step of decoding is ours.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from tokenry.core.checks import in_range, one_of
from tokenry.core.errors import ConstraintError, InputError, ShapeError, VocabularyError
from tokenry.decode.steering.base import Example, controller

STEPS = 60
TOLERANCE = 1e-10  # of E_q[φ] - ε, relative to the largest |φ - ε|
RIDGE = 1e-14


@controller("posterior", paper=4, examples=lambda: _examples())
class PosteriorControl(LogitsProcessor):
    """Keeps expected token features below a bound at every step; for `logits_processor=[...]`.

        φ = event_features(len(tokenizer), answer=[...], nonanswer=[...])
        model.generate(**inputs, logits_processor=[PosteriorControl(φ, epsilon=0.0)])

    This steers step by step. The posterior of whole texts under a given u, p(y) exp(-u Σ_t φ(y_t)),
    is another distribution: `generate(..., critic=control.potential)` samples that one.

    Args:
        features: φ, [V] or [K, V]; tokens that a model pads its vocabulary with have 0.
        multiplier: u, a number or [K], used as it is.
        epsilon: ε, a number or [K]; u is then fitted. Give one of the two.
        when_infeasible: what to do at a step where no distribution over the possible tokens
            satisfies the constraints: "raise" a ConstraintError, or take the "closest", one
            constraint after the other at its least possible expectation.
        sampling_temperature: the temperature that is applied to the logits afterwards; the
            constraints hold for the distribution that is drawn from.
    """

    def __init__(
        self,
        features: Tensor | Sequence[float] | Sequence[Sequence[float]],
        *,
        multiplier: float | Sequence[float] | Tensor | None = None,
        epsilon: float | Sequence[float] | Tensor | None = None,
        when_infeasible: str = "raise",
        sampling_temperature: float = 1.0,
    ):
        self.features = torch.as_tensor(features, dtype=torch.float64)
        if self.features.ndim == 1:
            self.features = self.features[None]
        if self.features.ndim != 2 or not self.features.isfinite().all():
            raise ShapeError(
                f"features must be finite and [V] or [K, V], got {list(self.features.shape)}"
            )
        if (multiplier is None) == (epsilon is None):
            raise InputError("give either multiplier, to use it, or epsilon, to fit it")
        one_of("when_infeasible", when_infeasible, ("raise", "closest"))
        in_range("sampling_temperature", sampling_temperature, "(0, inf)")
        # tokens of equal features share one multiplier: few columns stand for the vocabulary
        padded = torch.nn.functional.pad(self.features, (0, 1))
        self.columns, self._group = padded.unique(dim=1, return_inverse=True)
        self.multiplier = None if multiplier is None else self._one_each("multiplier", multiplier)
        self.epsilon = None if epsilon is None else self._one_each("epsilon", epsilon)
        self.when_infeasible = when_infeasible
        self.sampling_temperature = sampling_temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Logits `[B, V]` of q from those of p."""
        width = scores.shape[-1]
        if self.features.shape[-1] > width:
            raise VocabularyError(
                f"features of {self.features.shape[-1]} tokens for a model with {width} logits"
            )
        group = self._group_of(width).to(scores.device)
        columns = self.columns.to(scores.device)
        T = self.sampling_temperature
        if self.multiplier is not None:
            tilt = weighted(self.multiplier[None].to(scores.device), columns)
        else:
            assert self.epsilon is not None
            logprob = (scores.double() / T).log_softmax(-1)
            mass = by_group(logprob, group, columns.shape[1])
            tilt = fitted_tilt(mass, columns, self.epsilon.to(scores.device), self.when_infeasible)
        return (scores.double() - T * tilt[:, group]).to(scores.dtype)

    def potential(self, ids: list[int], ended: bool = False) -> float:
        """-u Σ_t φ(y_t), the log potential of a text under given multipliers; a `critic` of `smc`.

        The ending token is not among the ids, and its features count as 0.
        """
        if self.multiplier is None:
            raise InputError("multipliers that are fitted at each step give a text no potential")
        return -float((self.multiplier @ self.features[:, ids]).sum())

    def _group_of(self, width: int) -> Tensor:
        """The column of `columns` of every token, `[width]`; the padding has features 0."""
        known = self._group[:-1]
        return torch.cat([known, self._group[-1:].expand(width - len(known))])

    def _one_each(self, name: str, value: float | Sequence[float] | Tensor) -> Tensor:
        if isinstance(value, str):
            raise InputError(f"{name} is {value!r}; it must be a number, or one for each feature")
        values = torch.as_tensor(value, dtype=torch.float64).reshape(-1)
        if len(values) not in (1, len(self.features)) or not values.isfinite().all():
            raise ShapeError(
                f"{name} must be one finite number, or one for each of the "
                f"{len(self.features)} features, got {values.tolist()}"
            )
        return values.expand(len(self.features))


def event_features(
    vocab_size: int, answer: Iterable[int] = (), nonanswer: Iterable[int] = ()
) -> Tensor:
    """φ [V]: 1 for tokens of non-answer events, -1 for tokens of answer events, 0 for all others.

    Raises:
        InputError: a token that is in both.
    """
    answer, nonanswer = set(answer), set(nonanswer)
    if both := answer & nonanswer:
        raise InputError(f"tokens {sorted(both)} are both of an answer and of a non-answer")
    if wrong := [token for token in answer | nonanswer if not 0 <= token < vocab_size]:
        raise VocabularyError(f"tokens {sorted(wrong)} are not in a vocabulary of {vocab_size}")
    features = torch.zeros(vocab_size, dtype=torch.float64)
    features[sorted(nonanswer)] = 1.0
    features[sorted(answer)] = -1.0
    return features


def posterior(logprob: Tensor, features: Tensor, multiplier: Tensor) -> Tensor:
    """log q `[B, V]` of p `[B, V]` tilted by u `[B, K]` and φ `[K, V]`."""
    return (logprob - weighted(multiplier, features)).log_softmax(-1)


def fitted_tilt(
    logprob: Tensor,
    features: Tensor,
    epsilon: Tensor,
    when_infeasible: str = "raise",
) -> Tensor:
    """u·φ `[B, V]` at the u that solve the dual; inf where only tokens of less φ can satisfy a
    constraint.

    Args:
        logprob: float64 `[B, V]`.
        features: `[K, V]`.
        epsilon: `[K]`.

    Raises:
        ConstraintError: a row has no solution, unless when_infeasible is "closest".
    """
    possible = logprob > -math.inf
    barred = torch.zeros_like(logprob)  # inf on tokens that no solution can have
    slack = []  # ε, or the least that is possible
    for phi, bound in zip(features, epsilon, strict=True):
        kept = possible & (barred == 0)
        least = phi.expand_as(logprob).masked_fill(~kept, math.inf).amin(-1)
        short = least > bound + TOLERANCE
        if when_infeasible == "raise" and bool(short.any()):
            raise ConstraintError(
                f"no distribution over the possible tokens of row {int(short.nonzero()[0])} has an "
                f"expected feature of at most {float(bound):g}: the least is "
                f'{float(least[short][0]):g}; raise epsilon, or pass when_infeasible="closest"'
            )
        at_least = least >= bound - TOLERANCE
        barred = barred.masked_fill(at_least[:, None] & kept & (phi > least[:, None]), math.inf)
        slack.append(torch.maximum(least, bound))
    u, solved = maximise_dual(logprob - barred, features, torch.stack(slack, -1))
    if when_infeasible == "raise" and not bool(solved.all()):
        raise ConstraintError(
            f"the constraints {epsilon.tolist()} on {len(features)} features cannot be kept "
            f"together in row {int((~solved).nonzero()[0])}, or only at the edge of what is "
            'possible: raise epsilon, or pass when_infeasible="closest"'
        )
    return barred + weighted(u, features)


def maximise_dual(logprob: Tensor, features: Tensor, epsilon: Tensor) -> tuple[Tensor, Tensor]:
    """The u >= 0 `[B, K]` that maximise g(u), and whether each row came to rest `[B]`.

    Newton steps on the coordinates that are not held at 0, shortened until g grows. g' = E_q[φ] -
    ε, and -g'' is φ's covariance under q.

    Args:
        logprob: `[B, V]`.
        features: `[K, V]`.
        epsilon: `[B, K]`.
    """
    possible = (logprob > -math.inf)[:, None]
    gap = torch.where(possible, features - epsilon[..., None], 0.0)  # [B, K, V]
    size = gap.abs().amax(-1).clamp_min(1e-300)
    gap = gap / size[..., None]  # features of any unit
    u = torch.zeros_like(epsilon)
    ones = torch.eye(len(features), dtype=u.dtype, device=u.device)

    def tilted(u: Tensor) -> Tensor:
        return logprob - (u[..., None] * gap).sum(1)

    unsolved = torch.ones_like(u[:, 0], dtype=torch.bool)
    for _ in range(STEPS):
        joint = tilted(u)
        total = joint.logsumexp(-1)  # -g(u)
        q = (joint - total[:, None]).exp()[:, None]
        slope = (q * gap).sum(-1)  # [B, K]
        residual = torch.where(u > 0, slope.abs(), slope.clamp_min(0.0)).amax(-1)
        # a row that has come to rest stays there, whatever the others of its batch still do
        unsolved = unsolved & (residual > TOLERANCE)
        if not bool(unsolved.any()):
            break
        centred = gap - slope[..., None]
        covariance = (q[:, None] * centred[:, :, None] * centred[:, None]).sum(-1)  # [B, K, K]
        free = (u > 0) | (slope > 0)
        both = free[:, :, None] & free[:, None]
        system = (
            torch.where(both, covariance, 0.0) + ones * torch.where(free, RIDGE, 1.0)[..., None]
        )
        direction = torch.linalg.solve(system, torch.where(free, slope, 0.0))
        reach = (10.0 + u.amax(-1)) / direction.abs().amax(-1).clamp_min(1e-300)
        step = reach.clamp_max(1.0)[:, None]
        for _ in range(STEPS):
            trial = (u + step * direction).clamp_min(0.0)
            promised = (slope * (trial - u)).sum(-1)
            grown = total - tilted(trial).logsumexp(-1) >= 1e-4 * promised - 1e-15
            if bool((grown | ~unsolved).all()):
                break
            step = torch.where(grown[:, None], step, step / 2)
        u = torch.where((unsolved & grown)[:, None], trial, u)
    return u / size, ~unsolved


def weighted(multiplier: Tensor, features: Tensor) -> Tensor:
    """u·φ `[B, V]`; a sum over k and no matrix product, whose rounding depends on the batch."""
    products = (u[:, None] * phi for u, phi in zip(multiplier.unbind(-1), features, strict=True))
    return sum(products, start=torch.zeros_like(features[0]))


def by_group(logprob: Tensor, group: Tensor, groups: int) -> Tensor:
    """Log of the mass of each group `[B, M]`, from log-probabilities `[B, V]` and `group` `[V]`."""
    mass = torch.zeros(len(logprob), groups, dtype=logprob.dtype, device=logprob.device)
    return mass.index_add_(1, group, logprob.exp()).log()


def _examples() -> list[Example]:
    def bounded(tokenizer: Any, epsilon: float) -> PosteriorControl:
        return PosteriorControl(torch.linspace(-1, 1, len(tokenizer)), epsilon=epsilon)

    return [Example(lambda t, *_: bounded(t, -0.3), lambda t, *_: bounded(t, 1.0))]
