"""DPH-RL: prompts that the first policy masters keep it whole, the others are explored without KL.

    loss = PPO clip on own samples (token mean, group-normalised advantages, no KL)
           + eta * mean over stored tokens of f(u),      u_t = pi(a_t|.) / pi_ref(a_t|.)

The stored tokens are right answers to mastered prompts that pi_ref gave before the training, with
their log pi_ref: no reference is run while it trains. Over pi_ref's samples the mean of f(u) is

    forward_kl   f = u - 1 - log u                                   KL(pi_ref || pi)
    js           f = u log u - (u + 1) log((u + 1) / 2)              KL(pi || M) + KL(pi_ref || M)
    alpha        f = (u^(1-a) - (1-a) u - a) / (a (a - 1))           a -> 1: forward, 0: reverse KL

with M the even mixture. All are 0 with slope 0 at u = 1, and grow where pi loses what pi_ref had.

Source: The Choice of Divergence: A Neglected Key to Mitigating Diversity Collapse in RL with
Verifiable Reward (arXiv 2509.07430) and its code (bounds: log u to 20, forward KL's f to 10; a).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from tokenry.core.aggregate import masked_mean
from tokenry.core.checks import in_range, one_of, within
from tokenry.core.divergences import JENSEN_SHANNON_SUM
from tokenry.core.divergences import alpha as alpha_divergence
from tokenry.core.errors import InputError
from tokenry.core.kl_estimators import k3
from tokenry.learn.objective import View, objective
from tokenry.learn.policy.gradient import PolicyGradient
from tokenry.learn.policy.presets import GRPO
from tokenry.learn.policy.rollout_batch import RolloutBatch
from tokenry.learn.policy.scored_rehearsal import RehearsalBuffer
from tokenry.learn.policy.surrogate import importance_log_ratio

Kind = Literal["forward_kl", "js", "alpha"]
KINDS = ("forward_kl", "js", "alpha")
LARGEST_F = 10.0


def rehearsal_divergence(
    logprob: Tensor, reference_logprob: Tensor, kind: Kind = "js", alpha: float = 0.2
) -> Tensor:
    """f(u) of each token, of the inputs' shape; gradient to logprob.

    Args:
        alpha: a, in (0, 1), of kind "alpha".
    """
    one_of("kind", kind, KINDS)
    shift = importance_log_ratio(logprob, reference_logprob)
    if kind == "forward_kl":
        return k3(-shift).clamp(-LARGEST_F, LARGEST_F)
    in_range("alpha", alpha, "(0, 1)")
    divergence = JENSEN_SHANNON_SUM if kind == "js" else alpha_divergence(alpha)
    return divergence.terms(torch.zeros_like(shift), shift)  # p = 1, q = u: what one sample adds


def partition_prompts(correct: Tensor, draws: int = 8, threshold: int = 7) -> tuple[Tensor, Tensor]:
    """Indices of the mastered prompts and of those to explore.

    Args:
        correct: [N], right answers of `draws` answers that the first policy gave to each prompt.
        threshold: right answers that make a prompt mastered, in [1, draws].
    """
    in_range("threshold", threshold, f"[1, {draws}]", integer=True)
    if bool(((correct < 0) | (correct > draws)).any()):
        raise InputError(f"correct must be counts out of {draws} draws, got {correct.tolist()}")
    mastered = correct >= threshold
    return mastered.nonzero()[:, 0], (~mastered).nonzero()[:, 0]


@dataclass(frozen=True)
class RehearsalTerm:
    """The term eta * mean f(u) over the buffer's next answers."""

    source: RehearsalBuffer
    eta: float
    kind: Kind
    alpha: float

    needs: ClassVar[tuple[str, ...]] = ("policy@mastered.logprob",)

    @property
    def axes(self) -> tuple[Any, ...]:
        return (self.source,)

    def views(self, rollouts: RolloutBatch) -> dict[str, View]:
        return {"mastered": View(self.source(rollouts), aligned=False)}

    def __call__(self, rollouts: RolloutBatch) -> Tensor:
        batch = rollouts.scores("batch@mastered")
        logprob = rollouts.scores("policy@mastered").need("logprob")
        reference = batch.column("reference_logprob")
        divergence = rehearsal_divergence(logprob, reference, self.kind, self.alpha)
        mean = masked_mean(divergence, batch.target)
        rollouts.report("mastered/divergence", mean)
        return self.eta * mean


@objective("dph-rl", paper=175)
@dataclass(frozen=True)
class DPHRL(GRPO):
    """Diversity-Preserving Hybrid RL around GRPO; without a rehearsal it explores alone.

    Its reverse KL, a baseline, is a KL on own samples: `GRPO(beta=...)`.

    Args:
        kind: of the divergence. alpha: a of kind "alpha", in (0, 1).
        eta: its weight, in [0, inf); the paper's are 0.01 to 0.05 for "forward_kl" and "alpha",
            0.05 to 0.2 for "js".
        rehearsal: right answers to mastered prompts; the prompts trained on are the others.
    """

    kind: Kind = "js"
    eta: float = 0.1
    alpha: float = 0.2
    rehearsal: RehearsalBuffer | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("kind", self.kind, KINDS)
        within(self, "[0, inf)", "eta")
        within(self, "(0, 1)", "alpha")

    def composed(self) -> PolicyGradient:
        plain = replace(super().composed(), aggregation="token-mean")
        if self.rehearsal is None or self.eta == 0:
            return plain
        term = RehearsalTerm(self.rehearsal, self.eta, self.kind, self.alpha)
        return replace(plain, terms=(term,))
