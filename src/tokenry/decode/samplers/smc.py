"""Sequential Monte Carlo: whole texts from a constrained model, with weights that make them exact.

P particles grow token by token. A token sampler gives each one a token x and a weight w with E[w
f(x)] = Σ p(x) accept(x) f(x); a particle's weight W is the product of its w. Where the effective
number of particles falls too low, (Σ W)² / Σ W² < τ P, they are drawn anew in proportion to W and
all get the mean weight. At the end, Σ W f / Σ W converges to the expectation of f over the model's
own distribution conditioned on the constraint, and the mean weight is an unbiased estimate of the
constraint's probability: the *evidence*.

Without the weights (`weighted=False`) this is plain local masking, which converges to something
else.

Source: Fast Controlled Generation from Language Models with Adaptive Weighted Rejection Sampling
(arXiv 2504.05410), after Syntactic and Semantic Control of Large Language Models via Sequential
Monte Carlo (arXiv 2504.13139).
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from tokenry.core.checks import in_range, one_of
from tokenry.decode.constraints.base import Constraint, State
from tokenry.decode.samplers.awrs import AWRS
from tokenry.decode.samplers.base import DEAD, NOTHING, TokenSampler
from tokenry.decode.samplers.base import sampler as samplers
from tokenry.decode.samplers.masked import Masked
from tokenry.decode.samplers.request import (
    Decoding,
    Processor,
    Progress,
    Request,
    check_sampling,
    next_logprobs,
    text_sampler,
)
from tokenry.decode.samplers.samples import Samples, effective_size, normalised

Critic = Callable[[list[int], bool], float]
RESAMPLING = ("multinomial", "systematic")


@dataclass
class _Particle:
    state: State
    row: int  # of the decoding state
    ids: list[int] = field(default_factory=list)
    log_weight: float = 0.0
    ended: bool = False
    critic: float = 0.0

    def copy(self) -> "_Particle":
        return _Particle(
            self.state, self.row, list(self.ids), self.log_weight, self.ended, self.critic
        )

    @property
    def active(self) -> bool:
        return not self.ended and self.log_weight > DEAD


@text_sampler("smc")
@dataclass(frozen=True)
class SMC:
    """Sequential Monte Carlo as a text sampler; the parameters are those of `smc`.

    Args:
        sampler: a token sampler or its name.
    """

    sampler: str | TokenSampler = "awrs"
    ess_threshold: float = 0.5
    resampling: str = "multinomial"
    critic: Critic | None = None
    exact: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check(self.ess_threshold, self.resampling)

    def __call__(self, request: Request, particles: int) -> Samples:
        return run_smc(
            request, particles, self.sampler, self.ess_threshold, self.resampling, self.critic
        )


@text_sampler("mask")
@dataclass(frozen=True)
class MaskedTexts:
    """Plain local masking: valid texts, all of weight one, distributed as nobody asked for.

    What structured-output libraries do.

    Args:
        greedy: the most probable allowed token every time.
    """

    greedy: bool = False
    exact: ClassVar[bool] = False

    def __call__(self, request: Request, particles: int) -> Samples:
        return run_smc(request, particles, Masked(self.greedy), weighted=False)


def run_smc(
    request: Request,
    particles: int,
    sampler: str | TokenSampler = "awrs",
    ess_threshold: float = 0.5,
    resampling: str = "multinomial",
    critic: Critic | None = None,
    weighted: bool = True,
) -> Samples:
    """`smc` on what a request asks for."""
    return smc(
        request.rows(),
        request.constraint,
        particles=particles,
        max_new_tokens=request.max_new_tokens,
        sampler=samplers[sampler]() if isinstance(sampler, str) else sampler,
        ess_threshold=ess_threshold,
        resampling=resampling,
        temperature=request.temperature,
        weighted=weighted,
        must_end=request.must_end,
        critic=critic,
        processors=request.processors,
        prompt_ids=request.prompt_ids,
        generator=request.generator,
        progress=request.progress,
    )


@torch.no_grad()
def smc(
    decoding: Decoding,
    constraint: Constraint,
    *,
    particles: int = 10,
    max_new_tokens: int = 64,
    sampler: TokenSampler | None = None,
    ess_threshold: float = 0.5,
    resampling: str = "multinomial",
    temperature: float = 1.0,
    weighted: bool = True,
    must_end: bool = True,
    critic: Critic | None = None,
    processors: Sequence[Processor] = (),
    prompt_ids: Sequence[int] = (),
    generator: torch.Generator | int = 0,
    progress: Progress | None = None,
) -> Samples:
    """Sample texts that satisfy `constraint` from the model behind `decoding`.

    The result has all weights -inf and the last living text as `dead_end` when no particle
    survived.

    Args:
        decoding: one row that has read the prompt; it is forked and used up.
        sampler: how a token is drawn (default: AWRS).
        ess_threshold: τ in [0, 1]; 0 never resamples.
        resampling: "multinomial" or "systematic".
        weighted: False ignores the weights and never resamples.
        must_end: a text cut off by the limit gets weight zero.
        critic: log potential of a text (ids so far, whether it has ended); the target is multiplied
            by its exponential.
        processors: transformers' logits processors, called with the prompt's and the text's ids;
            they change the model that is sampled from.
        progress: called after each token with its number and the particles' ids.
    """
    check_sampling(max_new_tokens, temperature, particles)
    _check(ess_threshold, resampling)
    sampler = sampler or AWRS()
    if isinstance(generator, int):
        generator = torch.Generator().manual_seed(generator)
    started = time.perf_counter()
    checks = masks = sampled = resampled = passes = 0
    first = constraint.begin(prompt_ids)
    population = [_Particle(first, 0) for _ in range(particles)]
    local = [0.0] * particles  # log weights that `weighted=False` leaves out of the particles
    dead_end: list[int] | None = None
    prompt = torch.tensor(list(prompt_ids), dtype=torch.long)

    for position in range(max_new_tokens):
        active = [index for index, particle in enumerate(population) if particle.active]
        if not active:
            break
        passes += 1
        before = [population[index].ids for index in active]
        # the first step reads the prompt's one row for all particles
        rows = torch.tensor([population[index].row for index in active])
        logits = decoding.logits
        if len(rows) != len(logits):
            logits = logits[rows.to(logits.device)]
        logprobs = next_logprobs(logits, prompt, before, processors, temperature)
        drawn = sampler.steps(logprobs, [population[index].state for index in active], generator)

        tokens = [NOTHING] * particles
        for index, step in zip(active, drawn, strict=True):
            particle = population[index]
            checks, masks = checks + step.checks, masks + step.masks
            if step.token == NOTHING or step.log_weight == DEAD:
                particle.log_weight = local[index] = DEAD
                continue
            sampled += 1
            tokens[index] = step.token
            particle.state = particle.state.advance(step.token)
            particle.ended = step.token in constraint.eos
            local[index] += step.log_weight
            particle.log_weight += step.log_weight if weighted else 0.0
            if not particle.ended:
                particle.ids.append(step.token)
            if critic is not None:
                potential = critic(list(particle.ids), particle.ended)
                particle.log_weight += potential - particle.critic if potential > DEAD else DEAD
                particle.critic = potential
        if progress is not None:
            progress(position + 1, [particle.ids for particle in population])
        log_weights = torch.tensor([p.log_weight for p in population], dtype=torch.float64)
        if bool((log_weights == DEAD).all()):
            dead_end = max(before, key=len)
            break
        if weighted and effective_size(log_weights) < ess_threshold * particles:
            ancestors = resample(log_weights, resampling, generator)
            mean = float(log_weights.logsumexp(0)) - math.log(particles)
            population = [population[ancestor].copy() for ancestor in ancestors]
            tokens = [tokens[ancestor] for ancestor in ancestors]
            for particle in population:
                particle.log_weight = mean
            resampled += 1

        going = [index for index, particle in enumerate(population) if particle.active]
        if not going or position + 1 == max_new_tokens:
            break
        _read_on(decoding, [population[index] for index in going], [tokens[i] for i in going])

    if must_end:
        for index, particle in enumerate(population):
            if not particle.ended:
                particle.log_weight = local[index] = DEAD
    log_weights = torch.tensor([p.log_weight for p in population], dtype=torch.float64)
    evidence = log_weights if weighted else torch.tensor(local, dtype=torch.float64)
    return Samples(
        ids=[particle.ids for particle in population],
        log_weights=log_weights,
        log_evidence=float(evidence.logsumexp(0)) - math.log(particles),
        finished=[particle.ended for particle in population],
        tokens=sampled,
        passes=passes,
        checks=checks,
        masks=masks,
        resampled=resampled,
        seconds=time.perf_counter() - started,
        dead_end=dead_end,
    )


def resample(log_weights: Tensor, how: str, generator: torch.Generator) -> list[int]:
    """`[P]` indices drawn in proportion to the weights: each i is expected P W_i / Σ W times."""
    P = len(log_weights)
    cumulative = normalised(log_weights).cumsum(0)
    if how == "systematic":
        uniform = torch.rand((), generator=generator, dtype=torch.float64)
        points = (torch.arange(P, dtype=torch.float64) + uniform) / P
    else:
        points = torch.rand(P, generator=generator, dtype=torch.float64)
    # scaled by the last sum, which rounding may leave below one
    return torch.searchsorted(cumulative, points * cumulative[-1], right=True).tolist()


def _read_on(decoding: Decoding, going: list[_Particle], tokens: list[int]) -> None:
    """Keep one row for each particle that goes on, and read its token."""
    rows = [particle.row for particle in going]
    if rows != list(range(len(decoding.logits))):
        decoding.select(torch.tensor(rows))
    decoding.append(torch.tensor(tokens))
    for row, particle in enumerate(going):
        particle.row = row


def _check(ess_threshold: float, resampling: str) -> None:
    in_range("ess_threshold", ess_threshold, "[0, 1]")
    one_of("resampling", resampling, RESAMPLING)
