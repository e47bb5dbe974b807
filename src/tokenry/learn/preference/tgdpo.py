"""TGDPO: DPO whose tokens are weighted by the token rewards of an already trained guide.

    r_t   = beta * [ log pi_g(y_t|s_t) - log pi_ref(y_t|s_t) ]              guide's token reward
    f_t   = 1 + alpha r_t   on the chosen completion,   1 - alpha r_t   on the rejected one
    rho_t = log pi(y_t|s_t) - log pi_ref(y_t|s_t)
    loss  = -log sigmoid( beta * [ sum_t f_t rho_t (y_w) - sum_t f_t rho_t (y_l) ] )

y_w is the chosen and y_l the rejected completion, s_t the prompt and the tokens before t, pi the
policy, pi_ref the frozen reference, pi_g the frozen guide: a policy trained from that reference by
DPO or SimPO. A good token of the chosen completion may move far from the reference, a bad one of
the rejected completion is pushed down hard, and a good token inside a rejected one is spared.

Source: TGDPO: Harnessing Token-Level Reward Guidance for Enhancing Direct Preference Optimization
(arXiv 2506.14574). Sums over tokens; the guide gets no gradient. Bounding f from below is ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokenry.core.batch import TokenBatch
from tokenry.core.checks import within
from tokenry.core.errors import InputError
from tokenry.core.scores import Scores
from tokenry.learn.objective import Loss, Objective, Unit, objective
from tokenry.learn.preference.pairs import halves, implicit_token_rewards
from tokenry.learn.preference.weighted import preference_loss


@dataclass(frozen=True)
class GuideWeight:
    """f_t of every token, [2B, T], from the scores of a frozen model called `guide`.

    alpha: in [0, inf). beta: in (0, inf). floor: lower bound of f, in (-inf, 1], or None for none.
    """

    alpha: float = 0.5
    beta: float = 0.1
    floor: float | None = None

    needs: ClassVar[tuple[str, ...]] = ("reference.logprob", "guide.logprob")

    def __post_init__(self) -> None:
        within(self, "[0, inf)", "alpha")
        within(self, "(0, inf)", "beta")
        within(self, "(-inf, 1]", "floor", optional=True)

    def __call__(
        self,
        batch: TokenBatch,
        policy: Scores,
        reference: Scores | None,
        *,
        guide: Scores | None = None,
        **_: object,
    ) -> Tensor:
        if guide is None:
            raise InputError('TGDPO needs the scores of a guide: pass frozen={"guide": ...}')
        chosen, rejected = halves(
            implicit_token_rewards(batch, guide, reference, beta=self.beta).detach()
        )
        weight = 1 + self.alpha * torch.cat([chosen, -rejected])
        return weight if self.floor is None else weight.clamp_min(self.floor)


@objective("tgdpo", paper=38)
@dataclass(frozen=True)
class TGDPO(Objective):
    """Token-level reward Guidance for DPO. Pass the trained guide as the frozen model "guide".

    beta: strength of the pull towards the reference, in (0, inf), also the scale of the guide's
        rewards; the paper's default is 0.1.
    alpha: how much a token reward changes a token's weight, in [0, inf); default 0.5. 0 gives DPO
        exactly, and so does a guide that equals the reference.
    floor: lower bound of the weights, in (-inf, 1], their value without rewards. A weight below 0
        turns a token's direction around, which happens where |r_t| > 1 / alpha; None (default, as
        published) lets it happen.
    """

    beta: float = 0.1
    alpha: float = 0.5
    floor: float | None = None

    needs: ClassVar[tuple[str, ...]] = ("policy.logprob", "reference.logprob", "guide.logprob")
    unit: ClassVar[Unit] = "pair"
    at_reference: ClassVar[float] = math.log(2)

    def __post_init__(self) -> None:
        _ = self._weight  # which checks the same fields

    def __call__(
        self, batch: TokenBatch, policy: Scores, reference: Scores | None, **others: object
    ) -> Loss:
        return preference_loss(
            batch,
            policy,
            reference,
            beta=self.beta,
            weight=self._weight(batch, policy, reference, **others),  # type: ignore[arg-type]
        )

    @property
    def _weight(self) -> GuideWeight:
        return GuideWeight(self.alpha, self.beta, self.floor)
