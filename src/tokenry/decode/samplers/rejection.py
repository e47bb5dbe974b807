"""Rejection sampling: draw texts from the model itself, keep those that satisfy the constraint.

A text is given up at the first token that the constraint refuses, which is the same as judging it
when it is whole. Tries go on until N + 1 texts were accepted, T in all. The first N are returned,
each with weight

    w = N / (T - 1).

They are properly weighted. The accepted texts are independent draws y from the model given the
constraint, whatever T is; and T is negative binomial, P(T = t) = C(t-1, N) Z^(N+1) (1-Z)^(t-N-1)
with Z the probability of the constraint, so

    E[w] = Σ_t  N / (t-1)  C(t-1, N) Z^(N+1) (1-Z)^(t-N-1) = Z Σ_t C(t-2, N-1) Z^N (1-Z)^(t-1-N)
         = Z,

the last sum being that of the negative binomial probabilities of N acceptances in t - 1 tries. (The
plain N / T of N acceptances would be biased upwards.) If `max_trials` = M tries give only K <= N
acceptances, K / M is the unbiased estimate: given that the N + 1st does not come within M tries,
every order of the K acceptances is possible and equally likely. The K texts then weigh N / M, and
N - K dead ones nothing, so that the mean weight is K / M and the weights stay proper.

Exact and simple; the price of a text is 1 / Z tries.

Source: common practice; the estimate is Haldane's (On a method of estimating frequencies, 1945).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokenry.core.checks import in_range
from tokenry.core.errors import ConstraintError
from tokenry.decode.constraints.base import State
from tokenry.decode.samplers.base import DEAD, NOTHING, Step, TokenSampler, drawn_tokens, sampler
from tokenry.decode.samplers.request import Request, check_sampling, text_sampler
from tokenry.decode.samplers.samples import Samples
from tokenry.decode.samplers.smc import run_smc
from tokenry.decode.samplers.texts import extended, joined

Judge = Callable[[list[list[int]], list[bool]], Sequence[bool]]


@text_sampler("rejection")
@dataclass(frozen=True)
class Rejection:
    """Texts of the model itself, those that break the constraint thrown away.

    Args:
        rows: tries that grow together.
        max_trials: after so many tries the sampler returns what was accepted, and raises
            ConstraintError if nothing was.
    """

    rows: int = 64
    max_trials: int = 10_000
    exact: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_trials(self.rows, self.max_trials)

    def __call__(self, request: Request, particles: int) -> Tried:
        return reject(request, particles, self.rows, self.max_trials)


@sampler("plain")
@dataclass(frozen=True)
class Plain(TokenSampler):
    """The model's own next token, x ~ p, with w = 1 if the constraint accepts it and 0 if not.

    One check a token. With SMC this is the bootstrap particle filter; most particles die where the
    model likes what the constraint refuses.
    """

    def steps(
        self, logprobs: Tensor, states: Sequence[State], generator: torch.Generator
    ) -> list[Step]:
        tokens = drawn_tokens(logprobs.double().exp().cumsum(-1), generator)
        return [
            Step(token, 0.0, checks=1) if state.allows(token) else Step(NOTHING, DEAD, checks=1)
            for token, state in zip(tokens.tolist(), states, strict=True)
        ]


@dataclass(frozen=True)
class Tried(Samples):
    """Samples that were found by trying.

    Args:
        tries: the T of the weights.
        accepted: of the tries.
    """

    tries: int = 0
    accepted: int = 0

    @property
    def acceptance(self) -> float:
        """Unbiased estimate of the probability that a try is accepted."""
        reached = self.accepted > len(self.ids)
        return (self.accepted - 1) / (self.tries - 1) if reached else self.accepted / self.tries


def reject(
    request: Request,
    particles: int,
    rows: int = 64,
    max_trials: int = 10_000,
    judge: Judge | None = None,
) -> Tried:
    """`particles` accepted texts of the request's model, properly weighted.

    Args:
        judge: a last word on texts that satisfy the constraint: it is told their ids, and which of
            them have ended, and says which are accepted. It may draw random numbers, one text at a
            time.
    """
    check_trials(rows, max_trials)
    check_sampling(request.max_new_tokens, request.temperature, particles)
    started = time.perf_counter()
    kept: list[tuple[list[int], bool]] = []
    rounds: list[Samples] = []
    tries, count = 0, particles + 1
    while len(kept) <= particles and tries < max_trials:
        drawn = run_smc(request, min(count, rows, max_trials - tries), Plain(), ess_threshold=0.0)
        rounds.append(drawn)
        valid = [at for at, weight in enumerate(drawn.log_weights.tolist()) if weight > DEAD]
        texts, ended = [drawn.ids[at] for at in valid], [drawn.finished[at] for at in valid]
        verdicts = judge(texts, ended) if judge and texts else [True] * len(texts)
        judged = zip(valid, texts, ended, verdicts, strict=True)
        taken = [(at, (text, done)) for at, text, done, verdict in judged if verdict]
        taken = taken[: particles + 1 - len(kept)]
        kept += [text for _, text in taken]
        # the tries are in order, and those after the last acceptance that is needed do not count
        tries += taken[-1][0] + 1 if len(kept) > particles else len(drawn.ids)
        rate = (len(kept) + 0.5) / (tries + 1)
        count = math.ceil((particles + 1 - len(kept)) / rate)
    if not kept:
        raise ConstraintError(
            f"none of {tries} texts satisfies the constraint within {request.max_new_tokens} "
            "tokens: sample with something that looks at the constraint at every token (smc, "
            "asap), from a better proposal (guard), or raise max_trials"
        )
    whole = joined(rounds)
    first, missing = kept[:particles], particles - len(kept)
    weight = particles / (tries - 1 if len(kept) > particles else tries)
    log_weights = torch.full((particles,), DEAD, dtype=torch.float64)
    log_weights[: len(first)] = math.log(weight)
    return extended(
        Tried,
        whole,
        ids=[ids for ids, _ in first] + [[] for _ in range(missing)],
        finished=[done for _, done in first] + [False] * missing,
        log_weights=log_weights,
        log_evidence=math.log(weight * len(first) / particles),
        seconds=time.perf_counter() - started,
        dead_end=None,
        tries=tries,
        accepted=len(kept),
    )


def check_trials(rows: int, max_trials: int) -> None:
    """Raise InputError for limits under which nothing can be tried."""
    in_range("rows", rows, "[1, inf)", integer=True)
    in_range("max_trials", max_trials, "[1, inf)", integer=True)
