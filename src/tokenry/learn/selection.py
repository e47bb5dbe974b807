"""Token selectors: which targets a loss is about, chosen by what models or the data say of them.

    loss( targets t with  s_t among the largest `share` of its row )        s any need

A selector restricts the loss, and with it the backward pass through the head, which reads the
chosen rows alone; the statistic is made of all targets, tile by tile and without gradient. So a
student may learn from the tokens where it is unsure, where a teacher is, or where the two differ.

    train(Selected(SFT(), TopShare("policy.entropy", 0.2)), ...)

A mean over tokens is then one over chosen tokens, and the micro-batches of an optimizer step weigh
as many as they have of these; where only a model's scores tell how many (`Between` on a need of a
model), as many as they have targets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tokenry.core.batch import TokenBatch
from tokenry.core.checks import within
from tokenry.core.errors import InputError
from tokenry.core.scores import Scores
from tokenry.learn.delegating import Delegating
from tokenry.learn.objective import DATA, Objective, is_on_policy


class Selector(Protocol):
    @property
    def needs(self) -> tuple[str, ...]:
        """What it looks at, in the words of an objective's needs."""
        ...

    def __call__(self, batch: TokenBatch, scores: Mapping[str, Scores]) -> Tensor:
        """True on the chosen targets, [B, T], from the scores of all targets by source."""
        ...

    def count(self, batch: TokenBatch) -> int:
        """How many targets it chooses; an upper bound where that needs scores."""
        ...


@dataclass(frozen=True)
class TopShare:
    """A share of each row's targets, those of the largest statistic.

    Args:
        need: the statistic: "policy.entropy", "teacher.logprob", "policy.divergence(teacher)",
            "token.NAME" of the data, ...
        share: of the targets, in (0, 1], rounded up: every row keeps one at least.
        largest: False takes those of the smallest.
    """

    need: str
    share: float = 0.2
    largest: bool = True

    def __post_init__(self) -> None:
        within(self, "(0, 1]", "share")

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.need,)

    def __call__(self, batch: TokenBatch, scores: Mapping[str, Scores]) -> Tensor:
        values = statistic(self.need, batch, scores)
        values = values if self.largest else -values
        order = values.masked_fill(~batch.target, -torch.inf).argsort(-1, descending=True)
        rank = torch.empty_like(order).scatter_(
            -1, order, torch.arange(order.shape[-1], device=order.device).expand_as(order)
        )
        return batch.target & (rank < self._per_row(batch)[:, None])

    def count(self, batch: TokenBatch) -> int:
        return int(self._per_row(batch).sum())

    def _per_row(self, batch: TokenBatch) -> Tensor:
        return (batch.target.sum(-1) * self.share - 1e-6).ceil()


@dataclass(frozen=True)
class Between:
    """The targets whose statistic lies within bounds.

    Args:
        need: as of `TopShare`. least, most: bounds, both allowed.
    """

    need: str
    least: float = -float("inf")
    most: float = float("inf")

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.need,)

    def __call__(self, batch: TokenBatch, scores: Mapping[str, Scores]) -> Tensor:
        values = statistic(self.need, batch, scores)
        return batch.target & (values >= self.least) & (values <= self.most)

    def count(self, batch: TokenBatch) -> int:
        known = self.need.partition(".")[0] in DATA
        return int((self(batch, {}) if known else batch.target).sum())


def statistic(need: str, batch: TokenBatch, scores: Mapping[str, Scores]) -> Tensor:
    """The numbers that a need names, [B, T]; of a row, the same for all its tokens."""
    source, _, quantity = need.partition(".")
    if source not in DATA:
        return scores[source].need(quantity)
    column = batch.column(quantity)
    return column if column.ndim == 2 else column[:, None].expand(batch.shape)


@dataclass(frozen=True)
class Selected(Delegating):
    """An objective about some of its targets; in everything else it is that objective.

    Args:
        objective: one of given completions. Rollouts are selected by `PolicyGradient(select=...)`.
        by: the selector.
    """

    objective: Objective
    by: Selector

    def __post_init__(self) -> None:
        if is_on_policy(self.objective):
            raise InputError(
                f"{type(self.objective).__name__} learns from rollouts, whose tokens are selected "
                "when they are prepared: PolicyGradient(select=...)"
            )

    @property
    def delegate(self) -> Objective:
        return self.objective

    @property
    def selector(self) -> Selector:
        return self.by
