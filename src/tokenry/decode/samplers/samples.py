"""What a text sampler returns: texts with their weights, and what they cost."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tokenry.decode.samplers.base import DEAD


@dataclass(frozen=True)
class Samples:
    """Weighted texts.

    Args:
        ids: tokens of each particle, without the end-of-sequence token.
        log_weights: float64 `[P]`, -inf for a particle that died or was cut off by the length
            limit.
        log_evidence: log of the estimated probability of the constraint (and of ending within the
            limit) under the model.
        finished: whether the text ended by itself.
        tokens: sampled in all, the ends included.
        checks: questions put to the constraint in all.
        masks: questions put to the constraint in all.
        passes: forward passes of the batch, the prompt's included.
    """

    ids: list[list[int]]
    log_weights: Tensor
    log_evidence: float
    finished: list[bool]
    tokens: int
    passes: int
    checks: int
    masks: int
    resampled: int
    seconds: float
    dead_end: list[int] | None = None
    texts: list[str] = field(default_factory=list)

    @property
    def checks_per_token(self) -> float:
        """Single-token questions to the constraint for each sampled token."""
        return self.checks / max(self.tokens, 1)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds > 0 else math.inf

    @property
    def weights(self) -> Tensor:
        """float64 `[P]`: normalised weights; all zero if no particle is alive."""
        return normalised(self.log_weights)

    @property
    def effective(self) -> float:
        """Effective number of particles, (Σ W)² / Σ W²."""
        return effective_size(self.log_weights)

    @property
    def best(self) -> int:
        """The particle with the largest weight."""
        return int(self.log_weights.argmax())

    def distribution(self) -> dict[str, float]:
        """Each distinct text with the sum of its normalised weights, heaviest first."""
        total: dict[str, float] = {}
        for text, weight in zip(self.texts, self.weights.tolist(), strict=True):
            if weight > 0:
                total[text] = total.get(text, 0.0) + weight
        return dict(sorted(total.items(), key=lambda item: -item[1]))


def effective_size(log_weights: Tensor) -> float:
    """(Σ W)² / Σ W², between 0 (all weights zero) and P (all equal)."""
    if bool((log_weights == DEAD).all()):
        return 0.0
    return float((2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0)).exp())


def normalised(log_weights: Tensor) -> Tensor:
    """Weights that sum to one; all zero when all are zero."""
    if bool((log_weights == DEAD).all()):
        return torch.zeros_like(log_weights)
    return log_weights.softmax(0)
