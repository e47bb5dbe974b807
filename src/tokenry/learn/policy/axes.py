"""The axes of a policy gradient that are at hand: advantages, ratios, clips, pulls, aggregation.

    GroupAdvantage    A_i = (R_i - mean_group R) / (std_group R + eps)
    TokenRatio        u_t = exp x_t,                x_t = log pi(y_t|s_t) - log pi_old(y_t|s_t)
    SequenceRatio     u_t = exp( mean of x over the completion ), the same for all its tokens
    MixedRatio        u_t = w_t exp x_t + (1 - w_t) exp( mean x )
    Clip              min( u A, clip(u, 1 - low, 1 + high) A ), for A < 0 not below `dual` A
    Truncated         sg[ min(u, most) ] A log pi      (the gradient never stops, it is bounded)
    KL                weight * k1 | k2 | k3 of log pi and log pi_ref
    balanced          mean over groups of (G+/G) (token mean where A > 0) + (G-/G) (where A < 0)

Sources: DeepSeekMath (arXiv 2402.03300), eqs. 3-4 (groups, k3); Group Sequence Policy Optimization
(arXiv 2507.18071), eqs. 5-7; MiniMax-M1 (arXiv 2506.13585), eqs. 4-5 (CISPO); dual clip, arXiv
1912.09729; Balanced Aggregation (arXiv 2605.04077).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from tokenry.core.aggregate import MODES, full_precision, per_sequence
from tokenry.core.batch import TokenBatch
from tokenry.core.checks import one_of, within
from tokenry.core.errors import InputError, ShapeError
from tokenry.core.kl_estimators import k1, k2, k3
from tokenry.core.scores import Scores
from tokenry.learn.policy.surrogate import Bound, clip_surrogate

ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}
AGGREGATIONS = (*MODES, "balanced")


@dataclass(frozen=True)
class RolloutBatch:
    """Completions that the policy wrote, and what is known about them.

    batch: B completions with the columns of their sampling. modules: the axes' modules. policy: the
        scores of this update; None while the rollouts are prepared.
    """

    batch: TokenBatch
    modules: nn.ModuleDict | None = None
    policy: Scores | None = None

    @property
    def mask(self) -> Tensor:
        """The tokens that the policy wrote, [B, T] bool."""
        return self.batch.target

    @property
    def group(self) -> Tensor:
        """Which prompt each completion answers, [B]; each its own where none were given."""
        if self.batch.group is not None:
            return self.batch.group
        return torch.arange(len(self.batch.ids), device=self.batch.ids.device)

    @property
    def reward(self) -> Tensor:
        """[B], or [B, n] of n reward functions."""
        return self.batch.column("reward")

    @property
    def total_reward(self) -> Tensor:
        """[B], the sum of a completion's rewards, float32 at least."""
        reward = full_precision(self.reward)
        return reward.sum(-1) if reward.ndim == 2 else reward

    @property
    def old_logprob(self) -> Tensor:
        """log pi_old of each token when it was sampled, [B, T]."""
        return self.batch.column("old_logprob")

    @property
    def old_entropy(self) -> Tensor:
        """Entropy of pi_old at each token, nats, [B, T]; for axes that ask for it."""
        return self.batch.column("old_entropy")

    @property
    def progress(self) -> float:
        """How far the training is, in [0, 1]; 0 where nobody says."""
        column = self.batch.columns.get("progress")
        return 0.0 if column is None else float(column.flatten()[0])

    def logprob_of(self, name: str) -> Tensor:
        """log-probabilities of a frozen model, scored when sampling, [B, T]."""
        return self.batch.column(f"{name}_logprob")

    def module(self, axis: Any) -> nn.Module:
        name = type(axis).__name__
        if self.modules is None or name not in self.modules:
            raise InputError(f"{name} needs its module: pass objective.modules(model) as modules=")
        return self.modules[name]


@dataclass(frozen=True)
class GroupAdvantage:
    """Rewards against those of the other completions of the same prompt, [B].

    center: subtract the group's mean (leave_one_out: of the others only, which is unbiased).
    scale: divide by the standard deviation over the "group" or the "batch", or by nothing.
    unbiased: n - 1 in its denominator. eps: added to it, >= 0; a group of equal rewards gives 0.
    Several rewards are summed.
    """

    center: bool = True
    scale: Literal["group", "batch", "none"] = "group"
    eps: float = 1e-4
    leave_one_out: bool = False
    unbiased: bool = True

    def __post_init__(self) -> None:
        one_of("scale", self.scale, ("group", "batch", "none"))
        within(self, "[0, inf)", "eps")

    def __call__(self, rollouts: RolloutBatch) -> Tensor:
        return group_advantage(rollouts.total_reward, rollouts.group, **vars(self))


def group_advantage(
    reward: Tensor,
    group: Tensor,
    *,
    center: bool = True,
    scale: str = "group",
    eps: float = 1e-4,
    leave_one_out: bool = False,
    unbiased: bool = True,
) -> Tensor:
    """`GroupAdvantage` of rewards [B] in groups [B]."""
    if reward.shape != group.shape:
        raise ShapeError(f"reward {[*reward.shape]} and group {[*group.shape]} must be [B] each")
    peers = group.unique(return_inverse=True)[1]
    count = int(peers.max()) + 1

    def over_group(values: Tensor) -> Tensor:
        return values.new_zeros(count).index_add(0, peers, values)[peers]

    size = over_group(torch.ones_like(reward))
    mean = over_group(reward) / size
    centred = reward - mean
    advantage = centred if center else reward
    if center and leave_one_out:
        advantage = centred * size / (size - 1).clamp_min(1)  # r - mean of the others
    if scale == "group":
        freedom = (size - 1).clamp_min(1) if unbiased else size
        return advantage / ((over_group(centred.square()) / freedom).sqrt() + eps)
    if scale == "batch":
        spread = reward.std(correction=int(unbiased)) if len(reward) > 1 else reward.new_zeros(())
        return advantage / (spread + eps)
    return advantage


@dataclass(frozen=True)
class TokenRatio:
    """Each token has its own ratio."""

    def __call__(self, log_ratio: Tensor, rollouts: RolloutBatch) -> Tensor:
        return log_ratio.exp()


@dataclass(frozen=True)
class SequenceRatio:
    """The geometric mean of a completion's token ratios, for all its tokens (GSPO)."""

    def __call__(self, log_ratio: Tensor, rollouts: RolloutBatch) -> Tensor:
        mean = per_sequence(log_ratio, rollouts.mask, "mean")
        return mean[:, None].exp().expand_as(log_ratio)


@dataclass(frozen=True)
class MixedRatio:
    """A token's own ratio with weight w, its completion's with 1 - w.

    weight: in [0, 1], or a function of the rollouts that gives [B, T]; a constant.
    """

    weight: float | Callable[[RolloutBatch], Tensor] = 0.5

    def __post_init__(self) -> None:
        if not callable(self.weight):
            within(self, "[0, 1]", "weight")

    def __call__(self, log_ratio: Tensor, rollouts: RolloutBatch) -> Tensor:
        weight = self.weight(rollouts).detach() if callable(self.weight) else self.weight
        token = TokenRatio()(log_ratio, rollouts)
        return weight * token + (1 - weight) * SequenceRatio()(log_ratio, rollouts)


@dataclass(frozen=True)
class Clip:
    """PPO's pessimistic bound: no gradient where the ratio has left [1 - low, 1 + high].

    low, high: > 0, numbers or [B, T]; None: no bound on that side. dual: > 1, bound on the ratio of
    tokens with a negative advantage; None: none.
    """

    low: Bound | None = 0.2
    high: Bound | None = 0.2
    dual: float | None = None

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            if not isinstance(getattr(self, name), Tensor):
                within(self, "(0, inf)", name, optional=True)
        within(self, "(1, inf)", "dual", optional=True)

    def __call__(
        self, ratio: Tensor, advantage: Tensor, log_ratio: Tensor, rollouts: RolloutBatch
    ) -> Tensor:
        low, high = (float("inf") if b is None else b for b in (self.low, self.high))
        return clip_surrogate(ratio, advantage, low, high, self.dual)


@dataclass(frozen=True)
class Truncated:
    """REINFORCE under an importance weight that is cut off: every token keeps a gradient (CISPO).

    most: largest weight, > 0.
    """

    most: float = 5.0

    needs: ClassVar[tuple[str, ...]] = ("policy.logprob",)

    def __post_init__(self) -> None:
        within(self, "(0, inf)", "most")

    def __call__(
        self, ratio: Tensor, advantage: Tensor, log_ratio: Tensor, rollouts: RolloutBatch
    ) -> Tensor:
        if rollouts.policy is None:
            raise InputError("Truncated needs the scores of the update")
        logprob = torch.where(rollouts.mask, rollouts.policy.need("logprob"), 0.0)
        return ratio.detach().clamp(max=self.most) * advantage.detach() * logprob


@dataclass(frozen=True)
class KL:
    """A pull towards the reference, per token: weight * k(log pi - log pi_ref).

    weight: per nat, > 0. estimator, with x = log pi - log pi_ref:
    k1 = x (its own gradient is no pull in expectation: use it in rewards), k2 = x^2 / 2 (gradient
    of the reverse KL on own samples), k3 = exp(-x) - 1 + x (>= 0, low variance; the gradient is
    that of the forward KL on own samples). corrected: multiply by the importance ratio, whose
    gradient makes k3's that of the reverse KL (DeepSeek-V3.2, arXiv 2512.02556).
    """

    weight: float = 0.04
    estimator: Literal["k1", "k2", "k3"] = "k3"
    corrected: bool = False

    rollout_needs: ClassVar[tuple[str, ...]] = ("reference.logprob",)

    def __post_init__(self) -> None:
        within(self, "(0, inf)", "weight")
        one_of("estimator", self.estimator, ESTIMATORS)

    def __call__(self, logprob: Tensor, ratio: Tensor, rollouts: RolloutBatch) -> Tensor:
        moved = torch.where(rollouts.mask, logprob - rollouts.logprob_of("reference"), 0.0)
        estimate = self.weight * ESTIMATORS[self.estimator](moved)
        return estimate * ratio if self.corrected else estimate


@torch.no_grad()
def balanced_weights(advantage: Tensor, mask: Tensor, group: Tensor) -> Tensor:
    """[B, 1], the w of Balanced Aggregation's sum_bt w l: (G_s / G) / n_s over the groups' number.

    G_s: completions of the group whose advantage has this row's sign, n_s: their tokens, G: all
    completions of the group, those with advantage 0, which weigh nothing, included. The sign of a
    completion is that of its mean advantage.
    """
    sign = per_sequence(advantage, mask, "mean").sign()
    peers = group.unique(return_inverse=True)[1]
    groups = int(peers.max()) + 1
    kind = peers * 3 + (sign.long() + 1)

    def total(values: Tensor, by: Tensor, count: int) -> Tensor:
        return values.new_zeros(count).index_add(0, by, values)[by]

    ones = torch.ones_like(sign)
    share = total(ones, kind, 3 * groups) / total(ones, peers, groups)
    tokens = total(mask.sum(-1).to(sign.dtype), kind, 3 * groups).clamp_min(1)
    return torch.where(sign == 0, 0.0, share / tokens / groups)[:, None]
