"""Rules of informed routing: which tokens a unit runs for.

Those without a router serve as bounds and baselines.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenry.core.checks import one_of, within
from tokenry.model.adaptive.routed_units import EXECUTE, RoutedUnit


@dataclass(frozen=True)
class Learned:
    """The routers decide, by argmax."""

    needs_update: ClassVar[bool] = False

    def __call__(self, unit: RoutedUnit, u: Tensor, update: Any, real: Tensor) -> Tensor:
        return unit.token_router(u).argmax(-1) == EXECUTE


@dataclass
class Sampled:
    """The routers decide by a hard Gumbel-softmax, straight-through: for training."""

    tau: float = 1.0
    generator: torch.Generator | None = None
    needs_update: ClassVar[bool] = True  # both branches carry gradient to the router

    def __post_init__(self) -> None:
        within(self, "(0, inf)", "tau")

    def __call__(self, unit: RoutedUnit, u: Tensor, update: Any, real: Tensor) -> Tensor:
        logits = unit.token_router(u)
        noise = -torch.empty_like(logits).exponential_(generator=self.generator).log()
        soft = ((logits + noise) / self.tau).softmax(-1)[..., EXECUTE]
        return (soft > 0.5).to(soft) + soft - soft.detach()


@dataclass
class Lowest:
    """A share of each row's tokens is approximated, those with the lowest score.

    Args:
        by: "error", the forecaster's, an oracle that must compute F(u); "update", the size of F(u),
            greedy importance; "random".
        sparsity: the share, rounded to whole tokens.
    """

    by: str
    sparsity: float
    generator: torch.Generator | None = None
    needs_update: ClassVar[bool] = True

    def __post_init__(self) -> None:
        one_of("Lowest.by", self.by, ("error", "update", "random"))
        within(self, "[0, 1]", "sparsity")

    def __call__(self, unit: RoutedUnit, u: Tensor, update: Any, real: Tensor) -> Tensor:
        if self.by == "error":
            score = (update.float() - unit.forecaster(u).float()).norm(dim=-1)
        elif self.by == "update":
            score = update.float().norm(dim=-1)
        else:
            score = torch.rand(u.shape[:-1], generator=self.generator).to(u.device)
        return ~lowest(score, self.sparsity, real)


def lowest(score: Tensor, share: float, real: Tensor) -> Tensor:
    """bool [B, T]: the tokens with the lowest scores, a share of each row's real tokens."""
    count = (real.sum(-1, keepdim=True) * share).round()
    order = score.masked_fill(~real, torch.inf).argsort(dim=-1, stable=True)
    return (order.argsort(dim=-1) < count) & real


def oracle_route(errors: Tensor, sparsity: float, real: Tensor | None = None) -> Tensor:
    """bool [B, T], True where the unit runs: the best routing by the errors of its forecaster."""
    return ~lowest(errors, sparsity, torch.ones_like(errors).bool() if real is None else real)
