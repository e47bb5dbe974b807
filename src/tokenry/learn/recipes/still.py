"""Attention transfer: teaches a model's new hybrid attention what its softmax attention gives.

    loss = sum over hybrid layers of mean over tokens, heads and dimensions of (y - softmax(qK) V)^2

with every layer reading what the pretrained model gives it, so the layers learn side by side; the
pretrained weights are frozen, and only feature maps and gates move. This is the first stage; the
second is next-token loss with LoRA by any trainer, since the converted model is an ordinary one:

    model = Still().convert(model)
    AttentionTransfer(steps=200).fit(model, batches)               # stage 1
    model = get_peft_model(model, LoraConfig(target_modules=["q_proj", "k_proj", "v_proj"]))
    Trainer(model, arguments, train_dataset=rows).train()          # stage 2

Source: "STILL: Selecting Tokens for Intra-Layer Hybrid Attention to Linearize LLMs" (arXiv
2602.02180), section on training. Ours: the optimizer and its rate.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from tokenry.core.checks import within
from tokenry.core.errors import InputError, ModelError
from tokenry.learn.fit import fit, only_trainable
from tokenry.model.memory.still import still_layers
from tokenry.model.memory.still_attention import StillAttention


def attention_transfer_loss(model: Any, ids: Tensor, attention: Tensor | None = None) -> Tensor:
    """The loss of ids [B, T].

    Args:
        attention: [B, T], False on padding, which does not count.
    """
    hybrids = converted(model)
    with transferring(hybrids):
        options = {} if attention is None else {"attention_mask": attention.long()}
        model(input_ids=ids, use_cache=False, logits_to_keep=1, **options)
        losses = [hybrid.transfer_loss for hybrid in hybrids]
    return torch.stack([loss for loss in losses if loss is not None]).sum()


@dataclass(frozen=True)
class AttentionTransfer:
    """Stage 1.

    Args:
        steps: optimizer steps, whole, in [1, inf).
        learning_rate: Adam's, in (0, inf).
    """

    steps: int = 200
    learning_rate: float = 1e-2

    def __post_init__(self) -> None:
        within(self, "[1, inf)", "steps", integer=True)
        within(self, "(0, inf)", "learning_rate")

    def fit(self, model: Any, batches: Iterable[Tensor]) -> list[float]:
        """Train on batches of ids [B, T], over again if they are fewer than the steps; returns the
        loss of every step. The weights keep the `requires_grad` that they had."""
        weights = [weight for hybrid in converted(model) for weight in hybrid.new_weights()]
        rows = cycle(batches)

        def loss(step: int, generator: torch.Generator) -> Tensor:
            ids = next(rows, None)
            if ids is None:
                raise InputError("there are no batches to train on")
            value = attention_transfer_loss(model, ids)
            if not value.requires_grad:
                raise InputError(
                    f"texts of {ids.shape[1]} tokens are read exactly, there is nothing to learn "
                    "from them: give texts of more than two chunks"
                )
            return value

        with only_trainable(model, weights):
            return fit(
                loss,
                weights,
                steps=self.steps,
                learning_rate=self.learning_rate,
                optimizer=torch.optim.Adam,
                clip=None,
            )


@contextmanager
def transferring(hybrids: list[StillAttention]) -> Iterator[None]:
    """The layers pass softmax attention on, and leave how far theirs is from it."""
    try:
        for hybrid in hybrids:
            hybrid.transfer = True
        yield
    finally:
        for hybrid in hybrids:
            hybrid.transfer, hybrid.transfer_loss = False, None


def converted(model: Any) -> list[StillAttention]:
    hybrids = list(still_layers(model).values())
    if not hybrids:
        raise ModelError("the model has no hybrid attention; Still().convert(model) first")
    return hybrids
