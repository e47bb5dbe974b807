"""PAMA: several rewards at once, balanced by one number per reward instead of by their gradients.

For each of n rewards, with its own advantage A'_i,t (whitened, so that no scale decides):

    A_i = max(A'_i, 0)                         "Noon", no negative: only what was good is learnt
    L_i = mean_t min( u_t A_i,t, clip(u_t, 1 - clip, 1 + clip) A_i,t )
    maximise  sum_i c_i L_i,     c = argmin_{c in simplex} | sum_i c_i a_i |

where a_i is the advantage of reward i where its clip is inactive. The direction common to all
rewards is min_c || sum_i c_i grad L_i ||; as all these gradients are mixtures of the same grad u_t,
its norm is bounded by the scalar above, whose minimum is the number in [min a, max a] nearest to 0
(`min_norm_scalars`). With Noon every a_i >= 0: the reward that is behind gets the weight.

scope="token": every token is a problem of its own, so that it is reinforced only as much as the
least pleased reward would. scope="batch": a_i is the mean over the batch's tokens, one c for all.
Behind Noon and whitening that mean is large or small by the *shape* of a reward's advantages (few
large ones give a small mean), so one reward may keep the whole weight for long.

Source: Pareto Multi-Objective Alignment for Language Models (arXiv 2508.07768), Theorem 1 and
Noon PPO. Reconstructed: the scope of a_i (the default is the one that served both rewards in the
reproduction), the weights among the many that give a minimum of 0 (the
extreme pair), whitening before Noon, and what counts as clipped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from tokenry.core.aggregate import aggregate, full_precision
from tokenry.core.batch import TokenBatch
from tokenry.core.checks import one_of, within
from tokenry.core.errors import InputError, ShapeError
from tokenry.core.scores import Scores
from tokenry.learn.objective import Loss, Objective, Unit, objective
from tokenry.learn.policy.advantages import whiten
from tokenry.learn.policy.ppo import (
    CRITIC_NEEDS,
    estimate,
    logprob_of,
    surrogate_metrics,
    value_head,
    values_of,
)
from tokenry.learn.policy.surrogate import (
    clip_surrogate,
    clipped_value_loss,
    importance_ratio,
    unclipped,
)
from tokenry.learn.policy.token_rewards import token_rewards

Scope = Literal["batch", "token"]


@torch.no_grad()
def min_norm_scalars(a: Tensor) -> tuple[Tensor, Tensor]:
    """Weights on the simplex that bring sum_i c_i a_i nearest to 0, and that sum.

    a: [n, ...], one problem per place behind the first dimension; weights have its shape. All
    positive: everything on the smallest (shared among equals). All negative: on the largest. Mixed
    signs: on the smallest and the largest so that they cancel.
    """
    if a.ndim == 0 or not len(a):
        raise ShapeError(f"one number per reward is needed, [n, ...]; got {[*a.shape]}")
    a = full_precision(a)
    least, most = a.amin(0), a.amax(0)
    nearest = torch.where(least > 0, least, most)  # the end that faces 0, when all have one sign
    mixed = (least <= 0) & (most >= 0) & (least < most)
    width = torch.where(mixed, most - least, 1.0)
    on_least = torch.where(mixed, most / width, 0.0)
    on_most = torch.where(mixed, -least / width, 0.0)
    weights = _shared(a == least, on_least) + _shared(a == most, on_most)
    weights = torch.where(mixed, weights, _shared(a == nearest, torch.ones_like(nearest)))
    return weights, torch.where(mixed, 0.0, nearest)


def noon(advantages: Tensor) -> Tensor:
    """No negative advantages."""
    return advantages.clamp_min(0.0)


def pama_loss(
    ratio: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip: float = 0.2,
    scope: Scope = "token",
) -> tuple[Tensor, Tensor]:
    """The loss, a scalar, and the weights: [n], or [n, B, T] under scope="token".

    ratio: u, [B, T], with gradient. advantages: A'_i before Noon, [n, B, T].
    """
    advantages = noon(advantages.detach()).masked_fill(~mask, 0.0)
    moving = unclipped(ratio, advantages, clip, clip)
    active = torch.where(moving, advantages, 0.0)  # I(A_i)
    if scope == "batch":
        active = torch.stack([aggregate(each, mask, "token-mean") for each in active])
    weights, _ = min_norm_scalars(active)
    spread = weights[:, None, None] if scope == "batch" else weights
    surrogate = (spread * clip_surrogate(ratio, advantages, clip, clip)).sum(0)
    return -aggregate(surrogate, mask, "token-mean"), weights


@objective("pama", paper=134)
@dataclass(frozen=True)
class PAMA(Objective):
    """Pareto Multi-objective Alignment of several rewards, `row.reward` [B, n].

    kl: weight of the KL penalty inside every reward, in [0, inf). clip: in (0, 1), as in PPO.
    gamma, lam: in [0, 1], as in PPO.
    scope: "token" or "batch", see above. normalise: whiten each reward's advantages; without it,
        scales decide.
    objectives: n, the number of rewards, whole, in [1, inf). Only a critic must know it:
        critic=True gives each reward a value head of its own, trained on its own returns.
    value_weight: in [0, inf), as in PPO. value_clip: in (0, inf), as in PPO.
    """

    kl: float = 0.2
    clip: float = 0.2
    gamma: float = 1.0
    lam: float = 0.95
    scope: Scope = "token"
    normalise: bool = True
    critic: bool = False
    objectives: int = 2
    value_weight: float = 0.1
    value_clip: float = 0.2

    unit: ClassVar[Unit] = "token"

    def __post_init__(self) -> None:
        within(self, "[0, inf)", "kl", "value_weight")
        within(self, "(0, 1)", "clip")
        within(self, "[0, 1]", "gamma", "lam")
        within(self, "(0, inf)", "value_clip")
        within(self, "[1, inf)", "objectives", integer=True)
        one_of("scope", self.scope, get_args(Scope))

    @property
    def num_rewards(self) -> int:
        return self.objectives

    @property
    def separable(self) -> bool:
        """Weights for the whole batch couple its rows."""
        return self.scope == "token"

    @property
    def needs(self) -> tuple[str, ...]:
        plain = ("policy.logprob", "token.advantage", "token.old_logprob")
        return (*plain, *CRITIC_NEEDS) if self.critic else plain

    @property
    def rollout_needs(self) -> tuple[str, ...]:
        plain = ("policy.logprob", "reference.logprob")
        return (*plain, "policy.hidden") if self.critic else plain

    def modules(self, model: Any) -> nn.ModuleDict:
        """One value head per reward; without a critic nothing."""
        return nn.ModuleDict({"critic": value_head(model, self.objectives)} if self.critic else {})

    def prepare(
        self,
        batch: TokenBatch,
        policy: Scores,
        reference: Scores | None,
        modules: nn.ModuleDict | None = None,
        **others: Any,
    ) -> TokenBatch:
        """The batch with one advantage per reward, column "advantage" [B, T, n]."""
        rewards = batch.column("reward")
        rewards = rewards[:, None] if rewards.ndim == 1 else rewards  # [B, n]
        values = values_of(modules, policy) if self.critic else None
        if values is not None and values.shape[-1] != rewards.shape[-1]:
            raise ShapeError(
                f"{rewards.shape[-1]} rewards but {values.shape[-1]} value heads: "
                f"set objectives={rewards.shape[-1]}"
            )
        found = []
        for number, reward in enumerate(rewards.unbind(-1)):
            per_token = token_rewards(
                batch.target,
                reward,
                old_logprob=policy.need("logprob"),
                reference_logprob=logprob_of("reference", reference),
                kl=self.kl,
            )
            value = None if values is None else values[..., number]
            advantage, value, returns = estimate(
                per_token, batch.target, self.gamma, self.lam, value
            )
            if self.normalise:
                advantage = whiten(advantage, batch.target)
            found.append((advantage, value, returns))
        advantage, value, returns = (torch.stack(each, -1) for each in zip(*found, strict=True))
        columns = {"advantage": advantage, "old_logprob": policy.need("logprob").detach()}
        if self.critic:
            columns |= {"value": value, "return": returns}
        return batch.with_columns(**columns)

    def __call__(
        self,
        batch: TokenBatch,
        policy: Scores,
        reference: Scores | None = None,
        modules: nn.ModuleDict | None = None,
        **others: Any,
    ) -> Loss:
        ratio = importance_ratio(policy.need("logprob"), batch.column("old_logprob"), batch.target)
        advantages = _last_first(batch.column("advantage"))
        loss, weights = pama_loss(ratio, advantages, batch.target, clip=self.clip, scope=self.scope)
        metrics = surrogate_metrics(ratio, noon(advantages).sum(0), self.clip, batch.target)
        for number, weight in enumerate(weights):
            one = weight if weight.ndim == 0 else aggregate(weight, batch.target, "token-mean")
            metrics[f"weight/{number}"] = one
        if self.critic:
            errors = clipped_value_loss(
                values_of(modules, policy),
                batch.column("value"),
                batch.column("return"),
                self.value_clip,
            )
            value_loss = aggregate(errors.mean(-1), batch.target, "token-mean")
            loss = loss + self.value_weight * value_loss
            metrics["value/loss"] = value_loss.detach()
        return Loss(loss, metrics)


@torch.no_grad()
def mgda_weights(gradients: Tensor) -> Tensor:
    """What PAMA avoids: argmin over the simplex of || sum_i c_i g_i ||, [n], of gradients [n, d].

    The point of a polytope that is nearest to 0, exactly, by Wolfe's active-set method (Finding the
    Nearest Point in a Polytope, 1976): a few linear systems of at most n unknowns, in float64.
    Where several weights give that point, one of them. Raises ShapeError and InputError.
    """
    if gradients.ndim != 2 or not len(gradients):
        raise ShapeError(f"gradients must be [n, d] with n >= 1, got {[*gradients.shape]}")
    if not bool(gradients.isfinite().all()):
        raise InputError("gradients must be finite to be balanced")
    # ||G' c|| = ||R c|| with the QR factor R of G': columns of at most n numbers instead of d
    points = torch.linalg.qr(gradients.detach().double().cpu().T, mode="r").R
    largest = points.norm(dim=0).max()
    active = [int(points.norm(dim=0).argmin())]
    weights = torch.zeros(points.shape[1], dtype=torch.float64)
    weights[active] = 1.0
    for _ in range(100 * len(weights)):  # far more than it takes: every round lowers the norm
        nearest = points @ weights
        # optimal when no point lies nearer to 0 than `nearest` does, along `nearest`
        along = points.T @ nearest
        best = int(along.argmin())
        if best in active or along[best] >= along @ weights - 1e-13 * largest * nearest.norm():
            break
        active.append(best)
        while True:
            # the nearest point to 0 of the plane through the active points
            first, others = points[:, active[:1]], points[:, active[1:]]
            shares = torch.linalg.lstsq(others - first, -first, driver="gelsd").solution[:, 0]
            wanted = torch.cat([1 - shares.sum(0, keepdim=True), shares])
            if bool((wanted > 0).all()):
                weights[active] = wanted
                break
            # outside the polytope: go towards it until a weight is 0, and drop that point
            current = weights[active]
            falling = wanted <= 0
            steps = torch.where(falling, current / (current - wanted), math.inf)
            weights[active] = current + steps.min() * (wanted - current)
            dropped = active.pop(int(steps.argmin()))
            weights[dropped] = 0.0
    return weights.to(gradients.device, full_precision(gradients).dtype)


def _last_first(advantages: Tensor) -> Tensor:
    """[B, T, n] (or [B, T] for one reward) as [n, B, T]."""
    return advantages[None] if advantages.ndim == 2 else advantages.movedim(-1, 0)


def _shared(which: Tensor, amount: Tensor) -> Tensor:
    """An amount [...] shared equally among the marked entries of [n, ...]."""
    return which * (amount / which.sum(0).clamp_min(1))
