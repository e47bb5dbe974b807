"""The next-token loss of batches, and the optimizer loop, of the methods of adaptive compute.

A batch is ids [B, T], or a mapping with `input_ids` and, if wanted, `attention_mask` and `labels`;
a list of batches is gone through again and again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tokenry.core.checks import in_range
from tokenry.core.errors import InputError
from tokenry.learn.fit import cosine, fit
from tokenry.model import compat
from tokenry.model.adaptive.wrapping import batch_parts

Batches = Sequence[Any]


def language_loss(model: Any, batch: Any, **options: Any) -> Tensor:
    """Mean loss of the next token over the real tokens but the first of each row; with `labels`
    in the batch, over those that are not -100."""
    ids, attention = batch_parts(batch)
    compat.require_left_padding(model, attention)
    output = model(input_ids=ids, attention_mask=attention, use_cache=False, **options)
    real = attention.bool()
    scored = real[:, 1:] & real[:, :-1]
    if not isinstance(batch, Tensor) and "labels" in batch:
        scored = scored & (batch["labels"][:, 1:] != -100)
    return cross_entropy(output.logits[:, :-1][scored].float(), ids[:, 1:][scored])


def optimise(
    weights: Iterable[nn.Parameter],
    loss_of: Callable[[int, Any], Tensor],
    batches: Batches,
    steps: int,
    learning_rate: float,
    clip: float | None = 1.0,
) -> list[float]:
    """Adam with a cosine that ends at a tenth of the learning rate; the loss of every step."""
    in_range("steps", steps, "[1, inf)", integer=True)
    if not len(batches):
        raise InputError("training needs batches; there are none")
    return fit(
        lambda step, _: loss_of(step, batches[step % len(batches)]),
        weights,
        steps=steps,
        learning_rate=learning_rate,
        schedule=cosine(end=0.1),
        optimizer=torch.optim.Adam,
        clip=clip,
    )


def trained(model: Any) -> list[nn.Parameter]:
    return [weight for weight in model.parameters() if weight.requires_grad]
