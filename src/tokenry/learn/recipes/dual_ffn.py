"""Duo-LLM: big and small blocks together on random routes, then a router under one budget.

    train_random_routes     stage 1: every route works
    train_routers           stage 3: a router per layer under one global budget

Source: Duo-LLM: A Framework for Studying Adaptive Computation in Large Language Models (arXiv
2410.10846). Ours: the annealing of the temperature.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokenry.core.checks import in_range
from tokenry.learn.fit import only_trainable
from tokenry.learn.recipes.language_loss import Batches, language_loss, optimise, trained
from tokenry.model.adaptive.dual_ffn import BIG, AttachedDuo, budget_loss
from tokenry.model.adaptive.wrapping import batch_parts


def train_random_routes(
    attached: AttachedDuo,
    batches: Batches,
    *,
    steps: int,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> list[float]:
    """Train the model and the small blocks with independent random routes for every token and
    layer, so that every route works."""
    generator = torch.Generator().manual_seed(seed)

    def loss(step: int, batch: Any) -> Tensor:
        routes = attached.random_routes(tuple(batch_parts(batch)[0].shape), generator)
        with attached.route(routes):
            return language_loss(attached.model, batch)

    return optimise(trained(attached.model), loss, batches, steps, learning_rate)


def train_routers(
    attached: AttachedDuo,
    batches: Batches,
    *,
    budget: float,
    steps: int,
    learning_rate: float = 1e-2,
    weight: float = 10.0,
    tau: tuple[float, float] = (2.0, 0.2),
    hard: bool = False,
) -> list[float]:
    """Train the routers alone: L_LM + weight (mean P(big) - budget / L)^2.

    Args:
        budget: big blocks per token.
        tau: temperature, from the first step to the last; the blocks are mixed by P, which low
            temperatures make nearly one choice.
    """
    target = budget / attached.layers
    in_range("weight", weight, "[0, inf)")
    in_range("budget", budget, f"[0, {attached.layers}]")  # the model's layers

    def loss(step: int, batch: Any) -> Tensor:
        at = step / max(steps - 1, 1)
        with attached.learned(tau[0] * (tau[1] / tau[0]) ** at, hard=hard) as seen:
            fit = language_loss(attached.model, batch)
        return fit + weight * budget_loss(torch.stack(seen)[..., BIG], target)

    routers = [weight for one in attached.wrappers() for weight in one.width_router.parameters()]
    with only_trainable(attached.model, routers):
        return optimise(routers, loss, batches, steps, learning_rate)
