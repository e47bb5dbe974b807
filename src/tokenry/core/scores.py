"""Scores: what a model says about every token of a batch, aligned with the batch's ids.

Position t of every [B, T] field speaks about token t given the tokens before it. Positions outside
`mask` (padding, prompts, the first token of a row) hold 0. Fields that were not asked for are None.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tokenry.core.errors import InputError, ShapeError
from tokenry.core.linear_head import LinearHead


@dataclass(frozen=True)
class Scores:
    """A model's view of a batch.

    ids, mask: [B, T], the tokens and which of them were scored.
    logprob: [B, T], log p(token t | tokens < t), nats.
    entropy: [B, T], of the next-token distribution that predicted token t, nats.
    topk_ids, topk_logprobs: [B, T, k], the likeliest tokens at t, likeliest first.
    divergence: [B, T], D(reference || this model) at t, when a reference was given.
    divergences: the same from other models, by their names; `need("divergence(NAME)")`.
    hidden: [B, T, D], the last hidden state that *predicts* token t; 0 outside the mask.
    head: the output layer that turns hidden into logits.
    hidden_states: [B, T, D] of every block (without the embeddings), placed like `hidden`.
    """

    ids: Tensor
    mask: Tensor
    logprob: Tensor | None = None
    entropy: Tensor | None = None
    topk_ids: Tensor | None = None
    topk_logprobs: Tensor | None = None
    divergence: Tensor | None = None
    hidden: Tensor | None = None
    head: LinearHead | None = None
    full_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    divergences: dict[str, Tensor] = field(default_factory=dict)

    def logits(self, mask: Tensor | None = None) -> Tensor:
        """The logits that predicted the tokens in `mask` (default: all scored), [n, V] float32.

        Made on demand: n tokens of a 262k vocabulary take n MB. Raises InputError when the scores
        were made without hidden states.
        """
        mask = self.mask if mask is None else mask & self.mask
        if self.full_logits is not None:
            return self.full_logits[mask[self.mask]]
        if self.hidden is None or self.head is None:
            raise InputError('logits on demand need scores made with needs=(..., "hidden")')
        return self.head.logits(self.hidden[mask])

    def need(self, name: str) -> Any:
        """A field that must be there; raises InputError naming what to ask for when it is not."""
        other = name.removeprefix("divergence(").removesuffix(")") if "(" in name else None
        value = self.divergences.get(other) if other else getattr(self, name)
        if value is None:
            raise InputError(f'these scores lack {name}: ask for it in needs=("{name}", ...)')
        return value

    def detach(self) -> Scores:
        """The same numbers as constants."""
        fields: dict[str, Any] = {
            name: value.detach() if isinstance(value, torch.Tensor) else value
            for name, value in vars(self).items()
        }
        fields["divergences"] = {k: value.detach() for k, value in self.divergences.items()}
        if self.hidden_states is not None:
            fields["hidden_states"] = tuple(states.detach() for states in self.hidden_states)
        return Scores(**fields)

    def placed_on(self, ids: Tensor, mask: Tensor) -> Scores:
        """The same numbers where another batch has the same targets, in the same order.

        Args:
            ids: that batch's ids and targets, [B, T]; T may differ.
            mask: that batch's ids and targets, [B, T]; T may differ.

        Raises:
            ShapeError: its targets are other tokens, or more or fewer in a row.
        """
        same = len(ids) == len(self.ids) and torch.equal(mask.sum(-1), self.mask.sum(-1))
        if not same or not torch.equal(ids[mask], self.ids[self.mask]):
            raise ShapeError("another conditioning must keep the targets, in number and in order")

        def placed(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(map(placed, value))
            if isinstance(value, dict):
                return {name: placed(one) for name, one in value.items()}
            if not isinstance(value, Tensor) or value.shape[:2] != self.mask.shape:
                return value
            empty = value.new_zeros(*mask.shape, *value.shape[2:])
            return empty.index_put(mask.nonzero(as_tuple=True), value[self.mask])

        fields = {name: placed(value) for name, value in vars(self).items()}
        return Scores(**fields | {"ids": ids, "mask": mask, "full_logits": self.full_logits})
