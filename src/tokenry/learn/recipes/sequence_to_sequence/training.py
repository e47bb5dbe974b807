"""Training of encoders and decoders that share weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from tokenry.learn.fit import fit as optimise
from tokenry.learn.fit import linear


def fit(
    loss: Callable[[torch.Generator], Tensor],
    modules: Iterable[nn.Module],
    *,
    steps: int,
    learning_rate: float,
    seed: int,
    warmup: float = 0.1,
) -> list[float]:
    """Train modules in place by AdamW; the losses of all steps.

    The learning rate rises over the share `warmup` of the steps and falls linearly to 0 over the
    others. Weights that occur in several modules are trained once; gradients are clipped to norm 1.

    Args:
        loss: of a batch that it draws with the generator.
    """
    modules = list(modules)
    weights = [weight for module in modules for weight in module.parameters()]
    for module in modules:
        module.train()
    losses = optimise(
        lambda _, generator: loss(generator),
        weights,
        steps=steps,
        learning_rate=learning_rate,
        schedule=linear(warmup),
        weight_decay=0.01,
        seed=seed,
    )
    for module in modules:
        module.eval()
    return losses
