"""What a combiner is: the distributions of several models over one vocabulary become one."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from tokenry.core.errors import InputError, ShapeError
from tokenry.core.registry import Role


class Combiner(Protocol):
    """The role: distributions p_1, ..., p_K and weights w_k >= 0 of sum 1 -> one p, in logarithms.

    One model alone, or K equal ones, give that model; a model of weight 0 does not count.
    """

    def __call__(self, logprobs: Tensor, weights: Tensor | None = None) -> Tensor:
        """[B, V] float32 from [K, B, V] and weights [K], equal by default."""
        ...


combiner = Role("combiner", Combiner, ("tokenry.decode.ensembles",))


def checked(logprobs: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """The models that count, [K, B, V] in full precision, and their weights [K, 1, 1]."""
    if logprobs.ndim != 3 or not len(logprobs):
        raise ShapeError(f"logprobs must be [K, B, V], got {list(logprobs.shape)}")
    logprobs = logprobs.to(torch.promote_types(logprobs.dtype, torch.float32))
    if weights is None:
        weights = logprobs.new_full((len(logprobs),), 1 / len(logprobs))
    weights = weights.to(logprobs)
    if weights.shape != logprobs.shape[:1]:
        raise ShapeError(f"{len(logprobs)} models need as many weights, got {list(weights.shape)}")
    if not (bool((weights >= 0).all()) and abs(float(weights.sum()) - 1) < 1e-4):
        raise InputError(f"weights must be >= 0 and sum to 1, got {weights.tolist()}")
    return logprobs[weights > 0], weights[weights > 0][:, None, None]
