"""The output layer of a language model: hidden states to logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenry.core.checks import within
from tokenry.core.errors import ShapeError


@dataclass(frozen=True)
class LinearHead:
    """The output layer: logits = softcap * tanh((h W^T + bias) / softcap) / temperature.

    Args:
        weight: [V, D].
        bias: [V] or None.
        softcap: Gemma 2's bound on logits, finite and > 0, or None for no bound.
        temperature: divides the logits, finite and > 0; 1 is the model's own distribution.
    """

    weight: Tensor
    bias: Tensor | None = None
    softcap: float | None = None
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.weight.ndim != 2:
            raise ShapeError(f"the head's weight must be [V, D], got {list(self.weight.shape)}")
        if self.bias is not None and self.bias.shape != self.weight.shape[:1]:
            raise ShapeError(
                f"the head's bias must be [{len(self.weight)}], got {list(self.bias.shape)}"
            )
        within(self, "(0, inf)", "temperature")
        within(self, "(0, inf)", "softcap", optional=True)

    def shaped(self, raw: Tensor) -> Tensor:
        """Logits from h W^T + bias: bounded and tempered. Differentiable."""
        if self.softcap is not None:
            raw = self.softcap * torch.tanh(raw / self.softcap)
        return raw if self.temperature == 1.0 else raw / self.temperature

    def logits(self, hidden: Tensor) -> Tensor:
        """All logits, [..., V] in float32: for small inputs."""
        weight = self.weight.detach()
        bias = None if self.bias is None else self.bias.detach()
        rows = hidden.detach().reshape(-1, hidden.shape[-1])
        dtype = sum_dtype(hidden.dtype)
        full = tile_logits(rows.to(dtype), weight.to(dtype), bias, self.softcap, self.temperature)
        return full.view(*hidden.shape[:-1], -1)


def tile_logits(
    states: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    softcap: float | None = None,
    temperature: float = 1.0,
    out: Tensor | None = None,
) -> Tensor:
    logits = torch.mm(states, weight.T) if out is None else torch.mm(states, weight.T, out=out)
    if bias is not None:
        logits.add_(bias.to(logits.dtype))
    return shape_in_place(logits, softcap, temperature)


def shape_in_place(logits: Tensor, softcap: float | None, temperature: float) -> Tensor:
    """Bound and temper raw logits, in place."""
    if softcap is not None:
        logits.div_(softcap).tanh_().mul_(softcap)
    if temperature != 1.0:
        logits.div_(temperature)
    return logits


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_fits(hidden: Tensor, head: LinearHead) -> None:
    if hidden.ndim != 2 or hidden.shape[1] != head.weight.shape[1]:
        raise ShapeError(
            f"hidden must be [N, {head.weight.shape[1]}] to fit the head's weight "
            f"{list(head.weight.shape)}, got {list(hidden.shape)}"
        )
