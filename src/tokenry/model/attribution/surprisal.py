"""Surprisal as an attribution: a token that the model expected tells the reader little.

    s_t = -log p(x_t | x_<t)        nats; 0 for the first token, which nothing came before

One forward pass and no limit but the model's window, where the other attributions take a text
apart. The score does not depend on a position to attribute.

Source: a baseline for FrugalPrompt (arXiv 2510.16439), after Compressing Context to Enhance
Inference Efficiency of Large Language Models (arXiv 2310.06201).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tokenry.core.batch import TokenBatch
from tokenry.core.checks import within
from tokenry.model.attribution.base import attribution
from tokenry.model.score import score


@attribution("surprisal", paper=27)
@dataclass(frozen=True)
class Surprisal:
    """Scores of a text's tokens: how unexpected each is to a causal language model."""

    max_tokens: int = 1024

    def __post_init__(self) -> None:
        within(self, "[1, inf)", "max_tokens", integer=True)

    def __call__(self, model: Any, ids: Tensor, position: int = -1) -> Tensor:
        """[T] nats, not negative. position: not used."""
        if len(ids) < 2:
            return ids.new_zeros(len(ids)).float()
        batch = TokenBatch.from_ids([ids.tolist()])
        return -score(model, batch, needs=("logprob",)).need("logprob")[0]
