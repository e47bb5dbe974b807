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

Named assignments are presets: grpo, dr-grpo, dapo, gspo, cispo (`learn.policy.presets`), ppo, rto,
salsa, pro, pama and align-distil.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tokenry.core.aggregate import MODES, aggregate, masked_sum
from tokenry.core.batch import TokenBatch
from tokenry.core.checks import in_range, one_of
from tokenry.core.divergences import FORWARD_KL
from tokenry.core.errors import InputError, ShapeError
from tokenry.core.scores import Scores
from tokenry.learn.delegating import Delegating
from tokenry.learn.objective import Loss, Objective, Unit, View
from tokenry.learn.policy.groups import GroupAdvantage, balanced_weights
from tokenry.learn.policy.rollout_batch import RolloutBatch, module_name
from tokenry.learn.policy.rollouts import keep_targets
from tokenry.learn.policy.surrogate import Clip, TokenRatio, importance_log_ratio

AGGREGATIONS = (*MODES, "balanced")
UNITS: dict[str, Unit] = {"token-mean": "token", "balanced": "pair"}


class Advantage(Protocol):
    def __call__(self, rollouts: RolloutBatch) -> Tensor:
        """How much better each completion [B], or token [B, T], turned out than expected; of n
        rewards [B, T, n], for a `reshape` that makes one of them."""
        ...


class Ratio(Protocol):
    def __call__(self, log_ratio: Tensor, rollouts: RolloutBatch) -> Tensor:
        """The importance ratio of each token, [B, T], with gradient, from log-ratios [B, T]."""
        ...


class Surrogate(Protocol):
    """May also say `clipped(ratio, advantage, rollouts) -> [B, T] bool`, for the metric."""

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
Term = Callable[[RolloutBatch], Tensor]  # -> scalar, to be minimised


@dataclass(frozen=True)
class PolicyGradient(Objective):
    """A policy objective put together from its axes.

    Args:
        advantage: see their Protocols above. advantage=None leaves the terms alone.
        ratio: see their Protocols above. advantage=None leaves the terms alone.
        clip: see their Protocols above. advantage=None leaves the terms alone.
        weights: factors of each token's surrogate, constants.
        regularizer: a pull towards the reference, per token, to be minimised; or None.
        aggregation: "sequence-mean" (mean over completions of their token means), "token-mean",
            "constant-length" (sum over `length` tokens a completion), "sequence-sum" or "balanced"
            (positive and negative completions of a group apart).
        length: tokens, of "constant-length"; > 0.
        gate: maps log-ratios to log-ratios. reshape: map advantages at each update, knowing the
            ratio.
        select: which completions or tokens of the rollouts are learned from; denominators count
            what is kept.
        terms: further losses.

    An axis may carry

        rollout_needs, needs      what is scored when sampling, and at each update. Entropies and
                                  log-probabilities of the sampling are there in the updates too
        axes                      the axes that it uses itself
        module(model)             a module of its own, weights or a small state in buffers, trained
                                  and checkpointed beside the model; `rollouts.module(axis)`
        term(rollouts)            a further loss, a scalar
        views(rollouts)           {name: View}, other batches, scored for the need "policy@name.x"
        divergence                of the need "policy.divergence"
        separable                 False: its value couples the rows of a batch

    Raises:
        InputError: an unknown aggregation, one without its length, an axis that has nothing to
            act on without an advantage.
    """

    advantage: Advantage | None = field(default_factory=GroupAdvantage)
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
        acting = (self.regularizer, self.gate, *self.weights, *self.reshape)
        if self.advantage is None and (not self.terms or any(axis is not None for axis in acting)):
            raise InputError("without an advantage there are terms, and nothing else to act on")

    @property
    def unit(self) -> Unit:
        """What the loss is a mean over: tokens, completions or (balanced) groups."""
        return UNITS.get(self.aggregation, "row")

    @property
    def axes(self) -> tuple[Any, ...]:
        """All axes, those that others use included."""
        nested = _nested((self.advantage, *self.select, *self._acting))
        return tuple({id(axis): axis for axis in nested}.values())

    @property
    def _acting(self) -> tuple[Any, ...]:
        """The axes that act at every update."""
        surrogate = (self.ratio, self.clip, self.gate, self.regularizer)
        used = () if self.advantage is None else surrogate
        learning = [axis for axis in _nested((self.advantage,)) if hasattr(axis, "term")]
        return (*used, *self.weights, *self.reshape, *self.terms, *learning)

    @property
    def rollout_needs(self) -> tuple[str, ...]:
        own = () if self.advantage is None else ("policy.logprob",)
        return _joined(own, *_declared(self.axes, "rollout_needs"))

    @property
    def needs(self) -> tuple[str, ...]:
        own = ("policy.logprob", "token.advantage", "token.old_logprob")
        kept = tuple(f"token.{name}" for name in self._sampled.values())
        used = () if self.advantage is None else (*own, *kept)
        return _joined(used, *_declared(_nested(self._acting), "needs"))

    @property
    def _sampled(self) -> dict[str, str]:
        """The needs of the sampling that updates look back at, and the names of their columns."""
        columns = {}
        for need in _joined(*_declared(_nested(self._acting), "rollout_needs")):
            if need == "policy.entropy":
                columns[need] = "old_entropy"
            elif need.endswith(".logprob") and need != "policy.logprob":
                columns[need] = f"{need.removesuffix('.logprob')}_logprob"
        return columns

    @property
    def separable(self) -> bool:
        return all(getattr(axis, "separable", True) for axis in self.axes)

    @property
    def divergence(self) -> Any:
        return self._agreed("divergence", FORWARD_KL)

    @property
    def top_k(self) -> int:
        return self._agreed("top_k", 10)

    def _agreed(self, name: str, default: Any) -> Any:
        """The one value that the axes ask for."""
        asked = [getattr(axis, name) for axis in self.axes if hasattr(axis, name)]
        if any(value != asked[0] for value in asked):
            raise InputError(f"axes ask for more than one {name}: {', '.join(map(str, asked))}")
        return asked[0] if asked else default

    def modules(self, model: Any) -> nn.ModuleDict:
        """The axes' own modules, by name."""
        made = nn.ModuleDict()
        for axis in self.axes:
            module = axis.module(model) if hasattr(axis, "module") else None
            if module_name(axis) in made:
                raise InputError(
                    f"two axes call their module {module_name(axis)}: set a module_name"
                )
            if module is not None:
                made[module_name(axis)] = module
        return made

    def views(self, batch: TokenBatch, modules: nn.ModuleDict | None = None) -> dict[str, View]:
        """Other batches that axes want scored, by name."""
        rollouts = RolloutBatch(batch, modules)
        return {
            name: view
            for axis in self.axes
            if hasattr(axis, "views")
            for name, view in axis.views(rollouts).items()
        }

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
        if self.advantage is None:
            return batch
        scored = {"policy": policy, "reference": reference, **others}
        rollouts = RolloutBatch(
            batch.with_columns(**_columns(self.rollout_needs, scored)), modules, policy, scored
        )
        advantage = self.advantage(rollouts)
        if advantage.shape[:2] not in (batch.shape, batch.shape[:1]):
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
        columns = {
            "advantage": advantage.float().masked_fill(~_beside(batch.target, advantage), 0.0),
            "old_logprob": rollouts.old_logprob,
            **{name: rollouts.batch.column(name) for name in self._sampled.values()},
            **rollouts.kept,
        }
        batch = batch.with_columns(**columns)
        return keep_targets(batch, kept) if self.select else batch

    def __call__(
        self,
        batch: TokenBatch,
        policy: Scores,
        reference: Scores | None = None,
        modules: nn.ModuleDict | None = None,
        **others: Any,
    ) -> Loss:
        rollouts = RolloutBatch(batch, modules, policy, {"reference": reference, **others})
        loss: Any = 0.0 if self.advantage is None else self._surrogate(rollouts)
        own = (axis.term for axis in self.axes if hasattr(axis, "term"))
        for term in (*self.terms, *own):
            loss = loss + term(rollouts)
        tokens = batch.target.sum()
        counts = {name: tokens for name, value in rollouts.measured.items() if not value.ndim}
        return Loss(loss, rollouts.measured, counts)

    def _surrogate(self, rollouts: RolloutBatch) -> Tensor:
        mask, logprob = rollouts.mask, rollouts.scores().need("logprob")
        log_ratio = importance_log_ratio(logprob, rollouts.old_logprob, mask)
        if self.gate is not None:
            log_ratio = self.gate(log_ratio, rollouts)
        ratio = self.ratio(log_ratio, rollouts)
        advantage = rollouts.batch.column("advantage").to(log_ratio.dtype)
        advantage = advantage.masked_fill(~_beside(mask, advantage), 0.0)
        for reshape in self.reshape:
            advantage = reshape(advantage, ratio.detach(), rollouts).detach()
        surrogate = self.clip(ratio, advantage, log_ratio, rollouts)
        self._report(rollouts, ratio.detach(), surrogate.detach(), advantage)
        for weight in self.weights:
            surrogate = surrogate * weight(rollouts, advantage).detach()
        values = -surrogate
        if self.regularizer is not None:
            values = values + self.regularizer(logprob, ratio, rollouts)
        if self.aggregation == "balanced":
            weights = balanced_weights(advantage, mask, rollouts.group)
            return masked_sum(values * weights, mask)
        return aggregate(values, mask, self.aggregation, length=self.length)  # type: ignore[arg-type]

    @torch.no_grad()
    def _report(
        self, rollouts: RolloutBatch, ratio: Tensor, surrogate: Tensor, advantage: Tensor
    ) -> None:
        """How far the policy has moved since it wrote the rollouts: means over their tokens.

        Where the surrogate does not say what it has clipped, it is what is no longer ratio times
        advantage.
        """
        ratio = ratio.expand_as(surrogate)
        if hasattr(self.clip, "clipped"):
            clipped = self.clip.clipped(ratio, advantage, rollouts)  # type: ignore[attr-defined]
        else:
            clipped = ~torch.isclose(surrogate, ratio * advantage, rtol=1e-5, atol=1e-8)
        rollouts.report("clip_fraction", clipped)
        rollouts.report("clip_fraction/low", clipped & (ratio < 1))
        rollouts.report("clip_fraction/high", clipped & (ratio > 1))
        rollouts.report("kl/old", -ratio.log())
        rollouts.report("ratio", ratio)


def _nested(axes: Iterable[Any]) -> Iterator[Any]:
    """The axes and, behind each, those that it uses itself."""
    for axis in axes:
        if axis is not None:
            yield axis
            yield from _nested(getattr(axis, "axes", ()))


def _columns(needs: Iterable[str], scored: Mapping[str, Scores | None]) -> dict[str, Tensor]:
    """What was scored when sampling, as columns [B, T]."""
    columns = {}
    for need in needs:
        source, _, quantity = need.partition(".")
        scores = scored.get(source)
        if scores is None:
            raise InputError(
                f'this objective needs the scores of the frozen model "{source}": pass {source}='
            )
        if quantity in ("logprob", "entropy"):
            name = "old" if source == "policy" else source
            columns[f"{name}_{quantity}"] = scores.need(quantity).detach()
    return columns


def _beside(mask: Tensor, values: Tensor) -> Tensor:
    """The mask [B, T] with a dimension for the rewards where values [B, T, n] have one."""
    return mask if values.ndim == 2 else mask[..., None]


def _declared(axes: Iterable[Any], name: str) -> list[tuple[str, ...]]:
    return [tuple(getattr(axis, name, ())) for axis in axes]


def _joined(*groups: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(need for group in groups for need in group))


class Preset(Delegating, ABC):
    """A named assignment of axes: fields are hyper-parameters, `composed` puts them together.

    The objective that trainers see; everything is passed on to the `PolicyGradient` it stands for.
    """

    @abstractmethod
    def composed(self) -> PolicyGradient:
        """The assignment that the fields stand for."""

    @property
    def delegate(self) -> PolicyGradient:
        return self.composed()

    def prepare(self, *given: Any, **others: Any) -> TokenBatch:
        return self.composed().prepare(*given, **others)
