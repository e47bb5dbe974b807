"""Entropy routing: the larger model writes the tokens of which the small one is unsure.

d_t = [ H(p_t) > threshold ]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from tokenry.core.checks import in_range, within
from tokenry.core.signals import entropy
from tokenry.decode.routing.base import token_router


@token_router("entropy")
@dataclass(frozen=True)
class EntropyRouter:
    """Asks where the small model's entropy is above a threshold.

    Args:
        threshold: nats, in [0, inf]; default 1.0. inf never asks.
    """

    threshold: float = 1.0

    def __post_init__(self) -> None:
        within(self, "[0, inf]", "threshold")

    @classmethod
    def of_share(cls, entropies: Tensor, share: float) -> Self:
        """The router that asks for this share, in [0, 1], of tokens with such entropies [n]."""
        in_range("share", share, "[0, 1]")
        return cls(max(0.0, float(entropies.float().quantile(1 - share))))

    def __call__(self, logits: Tensor) -> Tensor:
        return entropy(logits) > self.threshold
