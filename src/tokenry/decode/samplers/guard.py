"""GUARD: rejection sampling from a proposal that breaks the constraint less often than the model.

The model a with the constraint b(y) in {0, 1} defines the target g(y) = a(y) b(y) / Z. A proposal
a', the same model with a prompt that asks for the constraint or a model trained towards g, is
sampled until b(y) = 1. What comes out,

    g'(y) = a'(y) b(y) / Z',      Z' = Σ a' b = the acceptance rate,

satisfies the constraint always, and costs 1 / Z' tries a text. How far it is from the target and
what it costs are one number, KL(g || a') = KL(g || g') - log Z', which training can lower.

Here every text also has the weight that makes it exact, whatever the proposal: with T tries for
N + 1 acceptances (see `rejection`),

    w_i = N / (T - 1) · a(y_i) / a'(y_i).

Quasi-rejection, beta > 0, accepts with probability min(1, a(y) / (beta a'(y))) instead: the output
moves from g' (beta -> 0) to g (beta -> max a / a'), for more tries; its weights are
N / (T - 1) · max(beta, a(y_i) / a'(y_i)).

Source: Guaranteed Generation from Large Language Models (arXiv 2410.06716); quasi-rejection after
An Approximate Sampler for Energy-based Models with Divergence Diagnostics (TMLR 2022). The weights
are ours; `learn.policy.proposal` trains proposals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenry.core.checks import within
from tokenry.core.errors import InputError
from tokenry.decode.generate import Prompt, prompt_ids
from tokenry.decode.samplers.base import DEAD
from tokenry.decode.samplers.divergences import Divergences, guard_divergences
from tokenry.decode.samplers.rejection import Tried, check_trials, reject
from tokenry.decode.samplers.request import Decoding, Request, text_sampler
from tokenry.decode.samplers.texts import extended, text_logprobs
from tokenry.model.decoding import DecodingState


@text_sampler("guard", paper=21, examples=lambda: [Guard(), _toy_guard()])
@dataclass(frozen=True)
class Guard:
    """A proposal, rejection, and weights that undo the proposal.

    The proposal is the model with another `prompt` (text, ids or messages), another `model` of the
    same tokenizer (which may be a PEFT adapter on the same weights), both, or any `decoding` state
    of one row; without any of them it is the model itself, and this is plain rejection.

    Args:
        beta: of quasi-rejection; 0 accepts all that satisfies the constraint.
        rows: as for `Rejection`.
        max_trials: as for `Rejection`.
    """

    prompt: Prompt | None = None
    model: Any = None
    decoding: Decoding | None = None
    beta: float = 0.0
    rows: int = 64
    max_trials: int = 10_000
    exact: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_trials(self.rows, self.max_trials)
        within(self, "[0, inf)", "beta")
        if self.decoding is not None and (self.prompt is not None or self.model is not None):
            raise InputError("decoding is the whole proposal: give no prompt or model beside it")

    def __call__(self, request: Request, particles: int) -> Guarded:
        base, proposal = self.requests(request)
        ratios: list[float] = []

        def judge(texts: list[list[int]], ended: list[bool]) -> Sequence[bool]:
            with self._without_adapter(request):
                log_ratio = text_logprobs(base, texts, ended, self.rows)
            log_ratio -= text_logprobs(proposal, texts, ended, self.rows)
            verdicts = [True] * len(texts)
            if self.beta:
                chance = (log_ratio - math.log(self.beta)).clamp(max=0.0).exp()
                uniform = torch.rand(len(texts), generator=request.generator, dtype=torch.float64)
                verdicts = (uniform < chance).tolist()
            ratios.extend(r for r, yes in zip(log_ratio.tolist(), verdicts, strict=True) if yes)
            return verdicts

        itself = proposal.decoding is base.decoding and not self.beta
        tried = reject(proposal, particles, self.rows, self.max_trials, None if itself else judge)
        ratios = ratios or [0.0] * min(tried.accepted, particles)
        log_ratio = torch.full((particles,), DEAD, dtype=torch.float64)
        log_ratio[: len(ratios)] = torch.tensor(ratios[:particles], dtype=torch.float64)
        floor = math.log(self.beta) if self.beta else DEAD
        log_weights = tried.log_weights + log_ratio.clamp(min=floor)
        return extended(
            Guarded,
            tried,
            log_weights=log_weights,
            log_evidence=float(log_weights.logsumexp(0)) - math.log(particles),
            log_ratio=log_ratio,
            beta=self.beta,
        )

    def requests(self, request: Request) -> tuple[Request, Request]:
        """The same request of the model and of the proposal."""
        ids, decoding = request.prompt_ids, self.decoding
        base = request
        if decoding is None and (self.prompt is not None or self.model is not None):
            if request.loaded is None:
                raise InputError("a proposal by prompt or model needs the request's `loaded`")
            model, tokenizer = request.loaded
            ids = ids if self.prompt is None else tuple(prompt_ids(tokenizer, self.prompt))
            decoding = start(model if self.model is None else self.model, ids)
            if self._shares_weights(model):  # the request's state was read with the adapter on
                with self._without_adapter(request):
                    base = replace(request, decoding=start(model, request.prompt_ids))
        # constraint and processors know the request's prompt, whatever the proposal has read
        proposal = request.decoding if decoding is None else decoding
        return base, replace(request, decoding=proposal)

    def _without_adapter(self, request: Request) -> Any:
        shares = request.loaded is not None and self._shares_weights(request.loaded[0])
        return self.model.disable_adapter() if shares else nullcontext()

    def _shares_weights(self, base: Any) -> bool:
        if self.model is None or not hasattr(self.model, "disable_adapter"):
            return False
        shared = {id(weight) for weight in base.parameters()}
        return any(id(weight) in shared for weight in self.model.parameters())


@dataclass(frozen=True)
class Guarded(Tried):
    """Samples of a proposal.

    Args:
        log_ratio: float64 `[P]`, log a(y) / a'(y).
    """

    log_ratio: Tensor = field(default_factory=lambda: torch.zeros(0))
    beta: float = 0.0

    @property
    def divergences(self) -> Divergences:
        """Estimated from these texts alone; they miss what the proposal never writes."""
        alive = self.log_weights > DEAD
        ratio = self.log_ratio[alive]
        if not self.beta:
            return guard_divergences(
                ratio, ratio, self.log_evidence, math.log(self.acceptance), ratio
            )
        # quasi-rejection accepts in proportion to a / max(beta, a / a'): that is its proposal
        excess = ratio.clamp(min=math.log(self.beta))
        log_mass = math.log(self.acceptance)
        estimated = guard_divergences(excess, excess, self.log_evidence, log_mass, excess)
        share = excess.softmax(0)
        to_proposal = float((share * ratio).sum()) - self.log_evidence
        return replace(estimated, target_proposal=to_proposal)


def start(model: Any, ids: Sequence[int]) -> DecodingState:
    """One row that has read the prompt."""
    device = next(model.parameters()).device
    return DecodingState.start(model, torch.tensor([list(ids)], device=device))


def _toy_guard() -> Guard:
    """Another proposal than the model itself, for the contract test."""
    from tokenry.tasks.worlds.toy_lm import ToyLM, ToyState

    return Guard(decoding=ToyState.start(ToyLM(seed=99), torch.zeros(1, 0, dtype=torch.long)))
