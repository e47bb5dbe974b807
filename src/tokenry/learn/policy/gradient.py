"""PolicyGradient: every policy objective on own samples as a choice along a few axes.

    A   = reshape( advantage(rollouts) )                               constant, [B, T]
    x_t = gate( log pi(y_t|s_t) - log pi_old(y_t|s_t) )                log-ratio, with gradient
    u   = ratio(x)                                                     importance ratio
    l_t = -w_t clip(u, A)_t + regularizer_t                            w: product of token weights
    loss = aggregate_t( l_t )  +  sum of terms

y are completions that pi_old, the policy when they were sampled, wrote for prompts; several of one
prompt are a group. Each axis is a small value (`learn.policy.axes`) that sees the whole
`RolloutBatch`: rewards, groups, old log-probabilities, entropies, how far the training is. Two
papers are combined by passing two arguments.

    PolicyGradient(GroupAdvantage(), TokenRatio(), Clip(0.2, 0.28), aggregation="token-mean")

Named assignments are presets (`learn.policy.presets`): grpo, dr-grpo, dapo, gspo, cispo.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tokenry.core.aggregate import aggregate, masked_sum
from tokenry.core.batch import TokenBatch
from tokenry.core.checks import in_range, one_of
from tokenry.core.errors import ShapeError
from tokenry.core.scores import Scores
from tokenry.learn.objective import Loss, Objective, Unit
from tokenry.learn.policy.axes import (
    AGGREGATIONS,
    Clip,
    GroupAdvantage,
    RolloutBatch,
    TokenRatio,
    balanced_weights,
)
from tokenry.learn.policy.surrogate import importance_log_ratio


class Advantage(Protocol):
    def __call__(self, rollouts: RolloutBatch) -> Tensor:
        """How much better each completion [B], or token [B, T], turned out than expected."""
        ...


class Ratio(Protocol):
    def __call__(self, log_ratio: Tensor, rollouts: RolloutBatch) -> Tensor:
        """The importance ratio of each token, [B, T], with gradient, from log-ratios [B, T]."""
        ...


class Surrogate(Protocol):
    def __call__(
        self, ratio: Tensor, advantage: Tensor, log_ratio: Tensor, rollouts: RolloutBatch
    ) -> Tensor:
        """What is maximised, [B, T]; its gradient stops where the ratio has moved too far."""
        ...


TokenWeight = Callable[[RolloutBatch, Tensor], Tensor]  # (rollouts, advantage) -> [B, T]
Reshape = Callable[[Tensor, Tensor, RolloutBatch], Tensor]  # (advantage, ratio, rollouts)
Gate = Callable[[Tensor, RolloutBatch], Tensor]  # log-ratio -> gated log-ratio
Select = Callable[[RolloutBatch, Tensor], Tensor]  # -> True on kept rows [B] or tokens [B, T]
Regularizer = Callable[[Tensor, Tensor, RolloutBatch], Tensor]  # (log pi, ratio, rollouts)
Term = Callable[[TokenBatch, Scores, RolloutBatch], Tensor]  # -> scalar, to be minimised


@dataclass(frozen=True)
class PolicyGradient(Objective):
    """A policy objective put together from its axes.

    advantage, ratio, clip: see their Protocols above.
    weights: factors of each token's surrogate, constants.
    regularizer: a pull towards the reference, per token, to be minimised; or None.
    aggregation: "sequence-mean" (mean over completions of their token means), "token-mean",
        "constant-length" (sum over `length` tokens a completion), "sequence-sum" or "balanced"
        (positive and negative completions of a group apart).
    length: tokens, of "constant-length"; > 0.
    gate: maps log-ratios to log-ratios. reshape: map advantages at each update, the ratio known.
    select: which completions or tokens of the rollouts are learned from; denominators count what is
        kept.
    terms: further losses.

    An axis may carry `rollout_needs` and `needs` (what is scored when sampling and at each update),
    and `module(model)`, a module of its own, found again by `rollouts.module(axis)`. InputError for
    an unknown aggregation or one without its length.
    """

    advantage: Advantage = field(default_factory=GroupAdvantage)
    ratio: Ratio = field(default_factory=TokenRatio)
    clip: Surrogate = field(default_factory=Clip)
    weights: tuple[TokenWeight, ...] = ()
    regularizer: Regularizer | None = None
    aggregation: str = "token-mean"
    length: float | None = None
    gate: Gate | None = None
    reshape: tuple[Reshape, ...] = ()
    select: tuple[Select, ...] = ()
    terms: tuple[Term, ...] = ()

    def __post_init__(self) -> None:
        one_of("aggregation", self.aggregation, AGGREGATIONS)
        needed = self.aggregation == "constant-length"
        in_range("length", self.length, "(0, inf)", optional=not needed)

    @property
    def unit(self) -> Unit:
        """What the loss is a mean over: tokens, completions or (balanced) groups."""
        return {"token-mean": "token", "balanced": "pair"}.get(self.aggregation, "row")  # type: ignore[return-value]

    @property
    def axes(self) -> tuple[Any, ...]:
        single = (self.advantage, self.ratio, self.clip, self.gate, self.regularizer)
        several = (*self.weights, *self.reshape, *self.select, *self.terms)
        return tuple(axis for axis in (*single, *several) if axis is not None)

    @property
    def rollout_needs(self) -> tuple[str, ...]:
        return _joined(("policy.logprob",), *_declared(self.axes, "rollout_needs"))

    @property
    def needs(self) -> tuple[str, ...]:
        kept = tuple(f"token.{name}" for name in self._columns())
        return _joined(("policy.logprob",), kept, *_declared(self.axes, "needs"))

    def modules(self, model: Any) -> nn.ModuleDict:
        """The axes' own modules by the names of their classes."""
        made = nn.ModuleDict()
        for axis in self.axes:
            if hasattr(axis, "module"):
                made[type(axis).__name__] = axis.module(model)
        return made

    @torch.no_grad()
    def prepare(
        self,
        batch: TokenBatch,
        policy: Scores,
        reference: Scores | None = None,
        modules: nn.ModuleDict | None = None,
        **others: Scores,
    ) -> TokenBatch:
        """The rollouts with their advantages and what was scored when they were sampled."""
        columns = {"old_logprob": policy.need("logprob").detach()}
        wanted = set(self.rollout_needs)
        if "policy.entropy" in wanted:
            columns["old_entropy"] = policy.need("entropy").detach()
        for name, scores in {"reference": reference, **others}.items():
            if f"{name}.logprob" in wanted and scores is not None:
                columns[f"{name}_logprob"] = scores.need("logprob").detach()
        rollouts = RolloutBatch(batch.with_columns(**columns), modules)
        advantage = self.advantage(rollouts)
        if advantage.shape not in (batch.shape, batch.shape[:1]):
            raise ShapeError(
                f"{type(self.advantage).__name__} must give [B] or [B, T] = {[*batch.shape]}, got "
                f"{[*advantage.shape]}"
            )
        if advantage.ndim == 1:
            advantage = advantage[:, None].expand(batch.shape)
        kept = torch.ones_like(batch.target)
        for select in self.select:
            chosen = select(rollouts, advantage)
            kept &= chosen[:, None] if chosen.ndim == 1 else chosen
        columns["advantage"] = advantage.float().masked_fill(~batch.target, 0.0)
        batch = batch.with_columns(**columns)
        return _kept(batch, kept) if self.select else batch

    def __call__(
        self,
        batch: TokenBatch,
        policy: Scores,
        reference: Scores | None = None,
        modules: nn.ModuleDict | None = None,
        **others: Scores,
    ) -> Loss:
        rollouts = RolloutBatch(batch, modules, policy)
        mask, logprob = batch.target, policy.need("logprob")
        log_ratio = importance_log_ratio(logprob, rollouts.old_logprob, mask)
        if self.gate is not None:
            log_ratio = self.gate(log_ratio, rollouts)
        ratio = self.ratio(log_ratio, rollouts)
        advantage = batch.column("advantage").masked_fill(~mask, 0.0)
        for reshape in self.reshape:
            advantage = reshape(advantage, ratio.detach(), rollouts).detach()
        surrogate = self.clip(ratio, advantage, log_ratio, rollouts)
        for weight in self.weights:
            surrogate = surrogate * weight(rollouts, advantage).detach()
        values = -surrogate
        if self.regularizer is not None:
            values = values + self.regularizer(logprob, ratio, rollouts)
        loss = self._aggregated(values, advantage, rollouts)
        for term in self.terms:
            loss = loss + term(batch, policy, rollouts)
        metrics = _metrics(ratio, surrogate, advantage, mask)
        return Loss(loss, metrics, dict.fromkeys(metrics, mask.sum()))

    def _aggregated(self, values: Tensor, advantage: Tensor, rollouts: RolloutBatch) -> Tensor:
        mask = rollouts.mask
        if self.aggregation == "balanced":
            weights = balanced_weights(advantage, mask, rollouts.group)
            return masked_sum(values * weights, mask)
        return aggregate(values, mask, self.aggregation, length=self.length)  # type: ignore[arg-type]

    def _columns(self) -> Iterable[str]:
        """The columns that `prepare` fills in."""
        yield from ("advantage", "old_logprob")
        for need in self.rollout_needs:
            source, _, quantity = need.partition(".")
            if need == "policy.entropy":
                yield "old_entropy"
            elif source != "policy" and quantity == "logprob":
                yield f"{source}_logprob"


def _kept(batch: TokenBatch, kept: Tensor) -> TokenBatch:
    """The rows that keep a token, their targets restricted to what is kept.

    When nothing is kept, one row without targets stands for it: a loss of 0.
    """
    batch = replace(batch, target=batch.target & kept)
    rows = batch.target.any(-1)
    if not bool(rows.any()):
        rows[0] = True
    return batch.select(rows)


@torch.no_grad()
def _metrics(
    ratio: Tensor, surrogate: Tensor, advantage: Tensor, mask: Tensor
) -> dict[str, Tensor]:
    """How far the policy has moved since it wrote the rollouts: means over their tokens.

    A token counts as clipped when its surrogate is not ratio times advantage any more.
    """
    ratio = ratio.expand_as(advantage).detach()
    free = torch.isclose(surrogate.detach(), ratio * advantage, rtol=1e-5, atol=1e-8)
    return {
        "clip_fraction": aggregate((~free).float(), mask, "token-mean"),
        "kl/old": aggregate(-ratio.log(), mask, "token-mean"),
        "ratio": aggregate(ratio, mask, "token-mean"),
    }


def _declared(axes: Iterable[Any], name: str) -> list[tuple[str, ...]]:
    return [tuple(getattr(axis, name, ())) for axis in axes]


def _joined(*groups: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(need for group in groups for need in group))


class Preset(Objective, ABC):
    """A named assignment of axes: fields are hyper-parameters, `composed` puts them together.

    The objective that trainers see; everything is passed on to the `PolicyGradient` it stands for.
    """

    @abstractmethod
    def composed(self) -> PolicyGradient:
        """The assignment that the fields stand for."""

    @property
    def unit(self) -> Unit:
        return self.composed().unit

    @property
    def needs(self) -> tuple[str, ...]:
        return self.composed().needs

    @property
    def rollout_needs(self) -> tuple[str, ...]:
        return self.composed().rollout_needs

    def modules(self, model: Any) -> nn.ModuleDict:
        return self.composed().modules(model)

    def prepare(self, *given: Any, **others: Any) -> TokenBatch:
        return self.composed().prepare(*given, **others)

    def __call__(self, *given: Any, **others: Any) -> Loss:
        return self.composed()(*given, **others)
