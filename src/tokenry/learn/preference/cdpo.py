"""cDPO: DPO that blames a rejected answer's critical tokens and spares its sound ones.

    s     = softmax( (1 + gamma) z+ - gamma z- )           contrastive estimate over the vocabulary
    s_t   = s(y_t|s_t)                                     low where a token dooms the answer
    rho_t = log pi(y_t|s_t) - log pi_ref(y_t|s_t)
    loss  = -log sigmoid( beta * [ sum_t rho_t (y_w) - sum_t (1 - s_t) rho_t (y_l) ] )

y_w is the chosen and y_l the rejected completion, pi the policy, pi_ref the frozen reference, z+
and z- the logits of two frozen models, tuned on correct and on wrong answers. The weights are
constants.

Source: Critical Tokens Matter: Token-Level Contrastive Estimation Enhances LLM's Reasoning
Capability (arXiv 2411.19943). The paper's formula sums inside the sigmoid (the default here); its
released code applies log sigmoid position by position and averages: reduction="token", in which
positions after the end of both completions are left out here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from tokenry.core.aggregate import full_precision, per_sequence
from tokenry.core.batch import TokenBatch
from tokenry.core.checks import within
from tokenry.core.errors import InputError, UnknownNameError
from tokenry.core.scores import Scores
from tokenry.learn.objective import Loss, Objective, Unit, objective
from tokenry.learn.preference.pairs import halves, token_log_ratios
from tokenry.learn.preference.weighted import pair_loss, preference_loss
from tokenry.measure.probes.critical_tokens import contrastive_estimation

Reduction = Literal["sequence", "token"]


@dataclass(frozen=True)
class CriticalWeight:
    """Token weights [2B, T] from two frozen models called `positive` and `negative`.

    gamma: strength of the contrast, in [0, inf). weigh_chosen: weight chosen tokens by s_t
        (default: 1).
    """

    gamma: float = 1.0
    weigh_chosen: bool = False

    needs: ClassVar[tuple[str, ...]] = ("positive.hidden", "negative.hidden")

    def __post_init__(self) -> None:
        within(self, "[0, inf)", "gamma")

    def __call__(
        self,
        batch: TokenBatch,
        policy: Scores,
        reference: Scores | None,
        *,
        positive: Scores | None = None,
        negative: Scores | None = None,
        **_: object,
    ) -> Tensor:
        if positive is None or negative is None:
            raise InputError(
                "cDPO contrasts a model of correct answers with one of wrong answers: pass both, "
                'frozen={"positive": ..., "negative": ...}'
            )
        chosen, rejected = halves(contrastive_estimation(positive, negative, self.gamma))
        return torch.cat([chosen if self.weigh_chosen else torch.ones_like(chosen), 1 - rejected])


@objective("cdpo", paper=74)
@dataclass(frozen=True)
class CDPO(Objective):
    """Contrastive DPO on critical tokens. Pass the two tuned models as "positive" and "negative".

    beta: strength of the pull towards the reference, in (0, inf); default 0.1.
    gamma: strength of the contrast between the two models, in [0, inf); default 1. 0 takes s_t to
        be the positive model's probability.
    weigh_chosen: also weight chosen tokens, by s_t. Off in the paper's main results.
    reduction: "sequence" (the paper's formula) or "token" (its released code).
    """

    beta: float = 0.1
    gamma: float = 1.0
    weigh_chosen: bool = False
    reduction: Reduction = "sequence"

    needs: ClassVar[tuple[str, ...]] = (
        "policy.logprob",
        "reference.logprob",
        "positive.hidden",
        "negative.hidden",
    )
    unit: ClassVar[Unit] = "pair"
    at_reference: ClassVar[float] = math.log(2)

    def __post_init__(self) -> None:
        within(self, "(0, inf)", "beta")
        within(self, "[0, inf)", "gamma")
        if self.reduction not in get_args(Reduction):
            raise UnknownNameError("reduction", self.reduction, get_args(Reduction))

    def __call__(
        self, batch: TokenBatch, policy: Scores, reference: Scores | None, **others: Any
    ) -> Loss:
        weight = CriticalWeight(self.gamma, self.weigh_chosen)(batch, policy, reference, **others)
        result = preference_loss(batch, policy, reference, beta=self.beta, weight=weight)
        if self.reduction == "sequence":
            return result
        ratio = torch.where(batch.target, weight, 0.0) * token_log_ratios(batch, policy, reference)
        losses = positionwise_loss(batch, self.beta * ratio)
        return Loss(losses.mean(), result.metrics | {"loss": losses.detach()}, result.counts)


def positionwise_loss(batch: TokenBatch, rewards: Tensor) -> Tensor:
    """Mean over positions of -log sigmoid(chosen reward - rejected reward), [B].

    The n-th token of one completion stands against the n-th of the other; the shorter one counts 0
    beyond its end.
    """
    place = (batch.target.cumsum(-1) - 1).clamp_min(0)
    rewards = full_precision(rewards)
    aligned = torch.zeros_like(rewards).scatter_add(1, place, rewards)  # 0 outside the target
    chosen, rejected = halves(aligned)
    length = torch.maximum(*halves(batch.target.sum(-1)))
    within = torch.arange(batch.shape[1], device=length.device) < length[:, None]
    return per_sequence(pair_loss(chosen - rejected), within, "mean")
