"""SkipDecode: fine-tuning with every column at the depth that it will have in decoding.

Source: SkipDecode: Autoregressive Skip Decoding with Batching and Caching for Efficient LLM
Inference (arXiv 2307.02628).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tokenry.learn.recipes.language_loss import Batches, language_loss, optimise, trained
from tokenry.model.adaptive.skipdecode import AttachedSkipDecode


def train_on_schedule(
    attached: AttachedSkipDecode,
    batches: Batches,
    *,
    steps: int,
    learning_rate: float = 1e-4,
    prompt_columns: int = 0,
) -> list[float]:
    """Fine-tune the model with every column at the depth that decoding will give it."""

    def loss(step: int, batch: Any) -> Tensor:
        return language_loss(attached.model, batch, prompt_columns=prompt_columns)

    return optimise(trained(attached.model), loss, batches, steps, learning_rate)
