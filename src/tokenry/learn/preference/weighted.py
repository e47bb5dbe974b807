"""Weighted DPO: the core that the preference objectives share, and its free composition.

    rho_t   = log pi(y_t|s_t) - log pi_ref(y_t|s_t)        token log-ratio
    R(y)    = sum_t w_t rho_t                              or its mean: sum_t w_t rho_t / |y|
    h       = [ g(R(y_w)) + m(y_w) ] - [ g(R(y_l)) + m(y_l) ]
    loss    = -log sigmoid( beta h )  +  further terms

y_w is the chosen and y_l the rejected completion. w are token weights, m a margin of each row, g a
link from log-ratio to reward (an f-divergence's derivative; the identity for the reverse KL, which
gives DPO). With sums beta acts on whole sequences, with means on the average token: the same beta
is then a |y| times weaker pull. Which of the two a paper uses is part of the paper.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from tokenry.core.aggregate import full_precision
from tokenry.core.batch import TokenBatch
from tokenry.core.checks import within
from tokenry.core.errors import InputError, ShapeError, UnknownNameError
from tokenry.core.scores import Scores
from tokenry.learn.objective import Loss, Objective, Unit
from tokenry.learn.preference.pairs import (
    check_pairs,
    halves,
    pair_metrics,
    sequence_sum,
    token_log_ratios,
)

Reduction = Literal["sum", "mean"]
Link = Callable[[Tensor], Tensor]


def preference_loss(
    batch: TokenBatch,
    policy: Scores,
    reference: Scores | None,
    *,
    beta: float,
    weight: Tensor | None = None,
    margin: Tensor | None = None,
    link: Link | None = None,
    reduction: Reduction = "sum",
    label_smoothing: float = 0.0,
) -> Loss:
    """The equation above on a preference batch: chosen rows, then rejected rows.

    weight: [2B, T] or None (1 everywhere); gradients flow into it where it has any. margin: [2B],
    added to each row's own side. link: g. label_smoothing: probability that a label is wrong.

    The metrics hold each pair's loss, the rewards beta (g(R) + m) of both sides and their margin,
    the unweighted log-ratio and the length; "loss" is per pair, so that terms can be added to it.
    """
    check_pairs(batch)
    ratio = token_log_ratios(batch, policy, reference)
    rows = sequence_sum(ratio if weight is None else _weighted(ratio, weight, batch), batch)
    if reduction not in get_args(Reduction):
        raise UnknownNameError("reduction", reduction, get_args(Reduction))
    if reduction == "mean":
        rows = rows / batch.target.sum(-1).clamp_min(1)
    value = rows if link is None else link(rows)
    if margin is not None:
        value = value + full_precision(margin)
    chosen, rejected = halves(value)
    # Subtracted before scaling, as DPO writes it: large rewards cancel without rounding.
    losses = pair_loss(beta * (chosen - rejected), label_smoothing)
    metrics = pair_metrics(batch, losses, beta * chosen, beta * rejected)
    total = sequence_sum(ratio, batch).detach()
    metrics["log_ratio/chosen"], metrics["log_ratio/rejected"] = halves(total)
    return Loss(losses.mean(), metrics)


def pair_loss(margin: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """-log sigmoid of each pair's margin, [B], in float32 at least; smoothing mixes in the flipped
    label."""
    margin = full_precision(margin)
    losses = -logsigmoid(margin)
    if label_smoothing:
        return (1 - label_smoothing) * losses - label_smoothing * logsigmoid(-margin)
    return losses


def add_terms(loss: Loss, **terms: Tensor) -> Loss:
    """The loss plus further terms, each [B] per pair or a scalar, and each one a metric."""
    metrics, total = dict(loss.metrics), loss.loss
    for name, term in terms.items():
        total = total + term.mean()
        metrics[name] = term.detach()
        metrics["loss"] = metrics["loss"] + term.detach()
    return Loss(total, metrics, loss.counts)


@dataclass(frozen=True)
class PreferenceObjective(Objective):
    """Any mixture of the family's parts, as arguments.

        PreferenceObjective(beta=0.3, weight=FieldWeight(), margin=KLMargin(0.5),
                            link=JENSEN_SHANNON.derivative, terms=(BarrierTerm(),))

    beta: in (0, inf). label_smoothing: in [0, 1]. link, reduction: as for `preference_loss`.
    weight, margin, terms: callables (batch, policy, reference, **others) giving [2B, T], [2B] and
        [B] (or a scalar). Each names what it needs in `needs`, and may have `precompute` and
        `modules` as an objective has. Several weights multiply, several margins add: pass tuples.
    """

    beta: float = 0.1
    weight: Any = ()
    margin: Any = ()
    link: Link | None = None
    reduction: Reduction = "sum"
    label_smoothing: float = 0.0
    terms: Any = ()

    unit: ClassVar[Unit] = "pair"

    def __post_init__(self) -> None:
        within(self, "(0, inf)", "beta")
        within(self, "[0, 1]", "label_smoothing")

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        found = ["policy.logprob", "reference.logprob"]
        for part in self._components().values():
            found += [need for need in part.needs if need not in found]
        return tuple(found)

    def precompute(self, rows: list[dict[str, Any]], context: Any) -> list[dict[str, Any]]:
        for part in self._components().values():
            if hasattr(part, "precompute"):
                rows = part.precompute(rows, context)
        return rows

    def modules(self, model: Any) -> nn.Module | None:
        made = {
            name: part.modules(model)
            for name, part in self._components().items()
            if hasattr(part, "modules")
        }
        return nn.ModuleDict(made) if made else None

    def __call__(
        self, batch: TokenBatch, policy: Scores, reference: Scores | None, **others: Any
    ) -> Loss:
        modules = others.pop("modules", None)
        values: dict[str, Tensor] = {}
        for name, part in self._components().items():
            own = {"modules": modules[name]} if modules is not None and name in modules else {}
            values[name] = part(batch, policy, reference, **others, **own)

        def of(kind: str) -> list[Tensor]:
            return [value for name, value in values.items() if name.startswith(kind)]

        weights, margins = of("weight"), of("margin")
        loss = preference_loss(
            batch,
            policy,
            reference,
            beta=self.beta,
            weight=torch.stack(weights).prod(0) if weights else None,
            margin=torch.stack(margins).sum(0) if margins else None,
            link=self.link,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )
        return add_terms(loss, **{k: v for k, v in values.items() if k.startswith("term")})

    def _components(self) -> dict[str, Any]:
        found = {}
        for kind, given in (("weight", self.weight), ("margin", self.margin), ("term", self.terms)):
            for number, part in enumerate(given if isinstance(given, tuple) else (given,)):
                if not hasattr(part, "needs"):
                    raise InputError(
                        f"a {kind} must name what it needs in `needs`; {part!r} has none"
                    )
                found[f"{kind}{number}"] = part
        return found


@dataclass(frozen=True)
class ColumnWeight:
    """Token weights that came with the data: the column `name`, [2B, T]."""

    name: str = "weight"

    @property
    def needs(self) -> tuple[str, ...]:
        return (f"token.{self.name}",)

    def __call__(
        self, batch: TokenBatch, policy: Scores, reference: Scores | None, **_: object
    ) -> Tensor:
        return batch.column(self.name)


def _weighted(ratio: Tensor, weight: Tensor, batch: TokenBatch) -> Tensor:
    if weight.shape != ratio.shape:
        raise ShapeError(f"weight must be {list(ratio.shape)}, got {list(weight.shape)}")
    # Masked before the product: what stands outside the target reaches neither value nor gradient.
    return torch.where(batch.target, full_precision(weight), 0.0) * ratio
