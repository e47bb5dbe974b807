"""AWRS: draw exactly from the constrained next-token distribution by testing only a few tokens.

Adaptive rejection: draw x from p; if the constraint refuses it, ban it and draw again from
what is left. The first accepted token is an exact draw from p(x) accept(x) / Z. Two unbiased
estimates of Z = Σ_x p(x) accept(x) come with it, both properly weighted:

    E[w f(x)] = Σ_x p(x) accept(x) f(x)   for every function f.

*Recursive.* Let r be the mass not banned when x is accepted. Look at one token y more, drawn
from what is left without x:   w = r if y is accepted, else p(x). (With q = p(x)/r this is the
recursion Z_left = q + (1-q) Z_left\\x, its last term settled by one coin flip; the product of the
(1-q) of the banned tokens telescopes to r.)

*Geometric.* Simulate draws *with* replacement until K are accepted. A draw of a token already
banned needs no test: their number before the next test is geometric with success probability r.
With n_acc accepted and n_rej refused draws:   w = min(K-1, n_acc) / (n_acc + n_rej - 1).

Source: Fast Controlled Generation from Language Models with Adaptive Weighted Rejection Sampling
(arXiv 2504.05410). Added here: masses are sums over the tokens left, exact however small, so that
no tail has to be cut off; and a constraint whose mask is cheap is asked for it when the single
checks have cost as much.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tokenry.core.checks import in_range, one_of, within
from tokenry.decode.constraints.base import State
from tokenry.decode.samplers.base import DEAD, NOTHING, Step, TokenSampler, fitted_mask, sampler
from tokenry.decode.samplers.survivors import Survivors, draw_survivors

PEAKED = 2 / 3  # from this probability of one token on, the geometric estimate varies less


@sampler("awrs", paper=7)
@dataclass(frozen=True)
class AWRS(TokenSampler):
    """Adaptive weighted rejection sampling of one token.

    Args:
        max_accepts: accepted draws K of the geometric estimate; more lower the variance.
        max_rejects: refused draws after which a step gives up with weight zero (None: never); the
            weights stay unbiased.
        method: "recursive", "geometric" or "auto", which takes the geometric one for max_accepts >
            2 or a token with at least two thirds of the mass.
        masks: whether to ask a state for its mask once the refused tokens of a step have cost as
            much as one (`State.mask_cost`).
        tail: a step also gives up when the tokens left hold no more than this mass, which bounds
            the checks and biases the weights by at most as much. The paper's code has 1e-5; 0 never
            gives up on a token that the model finds very unlikely, though nothing else may be
            allowed.
    """

    max_accepts: int = 2
    max_rejects: int | None = None
    method: str = "auto"
    masks: bool = True
    tail: float = 0.0

    def __post_init__(self) -> None:
        check_limits(self.max_accepts, self.max_rejects, self.method)
        within(self, "[0, 1]", "tail")

    def steps(
        self, logprobs: Tensor, states: Sequence[State], generator: torch.Generator
    ) -> list[Step]:
        V = logprobs.shape[-1]
        rows = draw_survivors(logprobs, generator)
        return [
            _one_step(
                survivors,
                state.allows,
                self,
                (lambda state=state: fitted_mask(state, V)) if self.masks else None,
                state.mask_cost,
            )
            for survivors, state in zip(rows, states, strict=True)
        ]


def awrs_step(
    logprobs: Tensor,
    accept: Callable[[int], bool],
    generator: torch.Generator,
    max_accepts: int = 2,
    max_rejects: int | None = None,
    method: str = "auto",
) -> tuple[int, float, int]:
    """One draw from `logprobs` `[V]`: token, log weight, number of calls of `accept`.

    `logprobs` need not be normalised (a pruned vocabulary): the weight then estimates the accepted
    part of their sum. The token is -1 and the log weight -inf when nothing was accepted.
    """
    check_limits(max_accepts, max_rejects, method)
    limits = AWRS(max_accepts, max_rejects, method)
    step = _one_step(draw_survivors(logprobs[None], generator)[0], accept, limits)
    return step.token, step.log_weight, step.checks


class Draws(Protocol):
    """Draws from the tokens that are not banned; `Survivors` is the real one."""

    mass: float  # what is left, as a fraction of the whole

    def draw(self) -> int | None: ...
    def ban(self, token: int) -> float: ...
    def repeats(self, chance: float) -> float: ...
    def keep(self, mask: Tensor) -> float: ...


def recursive(
    draws: Draws,
    accept: Callable[[int], bool],
    max_rejects: float = math.inf,
    mask: Callable[[], Tensor] | None = None,
    mask_after: float = math.inf,
    tail: float = 0.0,
) -> tuple[int, float]:
    """Token and weight by the recursive estimate.

    The expectation of the weight, given all that was refused, is Z at every moment: so once a mask
    tells Z, it is the weight.
    """
    refused = 0
    while refused < max_rejects:
        if mask is not None and (refused >= mask_after or draws.mass <= tail):
            accepted_mass = draws.keep(mask())
            token = draws.draw()
            return (NOTHING, 0.0) if token is None else (token, accepted_mass)
        token = draws.draw() if draws.mass > tail else None
        if token is None:
            break
        left = draws.mass
        probability = draws.ban(token)
        if accept(token):
            # at the limit, a refusal here would have been worth nothing: acceptance counts in full
            if refused + 1 >= max_rejects:
                return token, left
            following = draws.draw()
            return token, left if following is None or accept(following) else probability
        refused += 1
    return NOTHING, 0.0


def geometric(
    draws: Draws,
    accept: Callable[[int], bool],
    max_accepts: int = 2,
    max_rejects: float = math.inf,
    mask: Callable[[], Tensor] | None = None,
    mask_after: float = math.inf,
    tail: float = 0.0,
) -> tuple[int, float]:
    """Token and weight by the geometric estimate."""
    chosen, accepted, refused, tested = NOTHING, 0, 0.0, 0
    known: set[int] = set()
    all_known = False
    while accepted < max_accepts and refused < max_rejects:
        if mask is not None and (tested >= mask_after or draws.mass <= tail):
            draws.keep(mask())
            mask, all_known = None, True  # all that would be refused is banned
        token = draws.draw() if all_known or draws.mass > tail else None
        if token is None:
            break
        if draws.mass < 1.0:
            refused = min(refused + draws.repeats(draws.mass), max_rejects)
            if refused >= max_rejects:
                break
        if all_known or token in known or accept(token):
            known.add(token)
            accepted += 1
            chosen = token if accepted == 1 else chosen
        else:
            tested += 1
            refused += 1
            draws.ban(token)
    if not accepted:
        return NOTHING, 0.0
    return chosen, min(max_accepts - 1, accepted) / (accepted + refused - 1)


def check_limits(max_accepts: int, max_rejects: int | None, method: str) -> None:
    """Raise InputError for settings under which the weights would not be proper."""
    one_of("method", method, ("auto", "recursive", "geometric"))
    most = "[2, 2]" if method == "recursive" else "[2, inf)"
    in_range("max_accepts", max_accepts, most, integer=True)
    in_range("max_rejects", max_rejects, "[1, inf)", integer=True, optional=True)


def _one_step(
    survivors: Survivors,
    accept: Callable[[int], bool],
    limits: AWRS,
    mask: Callable[[], Tensor] | None = None,
    mask_after: float = math.inf,
) -> Step:
    checks = masks = 0

    def counted(token: int) -> bool:
        nonlocal checks
        checks += 1
        return accept(token)

    def counted_mask() -> Tensor:
        nonlocal masks
        masks += 1
        return mask()  # type: ignore[misc]

    ask = None if mask is None else counted_mask
    max_rejects = math.inf if limits.max_rejects is None else limits.max_rejects
    method = limits.method
    if method == "auto":
        peaked = limits.max_accepts > 2 or survivors.top >= PEAKED
        method = "geometric" if peaked else "recursive"

    def estimate() -> tuple[int, float]:
        if method == "recursive":
            left = max_rejects - checks
            return recursive(survivors, counted, left, ask, mask_after, limits.tail)
        return geometric(
            survivors, counted, limits.max_accepts, max_rejects, ask, mask_after, limits.tail
        )

    token, weight = estimate()
    # Everything that a float can hold was refused: the same, from what is left, is as proper. With
    # a limit, the simulated draws of `geometric` have gone past it long before.
    unlimited = method == "recursive" or max_rejects == math.inf
    while weight <= 0.0 and unlimited and not limits.tail and survivors.descend():
        ask = None if masks else ask  # nothing outside the mask is left
        token, weight = estimate()
    if weight <= 0.0:
        return Step(NOTHING, DEAD, checks, masks)
    return Step(token, math.log(weight) + survivors.log_total, checks, masks)
