"""The attention module of STILL: pretrained projections, feature maps and a gate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tokenry.model.attention.columns import compress
from tokenry.model.attention.hybrid import (
    NormPreservingFeatureMap,
    hybrid_chunk_attention,
    route,
    self_saliency,
)


class StillAttention(nn.Module):
    """An attention module's projections with hybrid attention between them.

    With `transfer` set, it gives the softmax attention that it would have replaced, and leaves the
    mean square of the difference in `transfer_loss`.

    Args:
        attention: the pretrained module, which stays inside.
        chunk: of `Still`.
        topk: of `Still`.
        config: the text model's.
        previous: the attention implementation to go back to.
    """

    def __init__(
        self,
        attention: Any,
        chunk: int,
        topk: int,
        config: Any,
        previous: str,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        heads, dim = config.num_attention_heads, attention.head_dim
        self.attention, self.previous = attention, previous
        self.chunk, self.topk = chunk, topk
        self.query_map = NormPreservingFeatureMap(heads, dim, generator)
        self.key_map = NormPreservingFeatureMap(heads, dim)
        self.key_map.load_state_dict(self.query_map.state_dict())
        self.gate = nn.Linear(config.hidden_size, heads * dim, bias=False)
        nn.init.zeros_(self.gate.weight)  # g = 1/2
        self.transfer = False
        self.transfer_loss: Tensor | None = None

    def new_weights(self) -> list[nn.Parameter]:
        """The weights that the pretrained model does not have."""
        parts = (self.query_map, self.key_map, self.gate)
        return [weight for part in parts for weight in part.parameters()]

    def forward(self, hidden_states: Tensor, **options: Any) -> Any:
        gate = self.gate(hidden_states.to(self.gate.weight.dtype)).float().sigmoid()
        gate = gate.unflatten(-1, (-1, self.attention.head_dim)).transpose(1, 2)  # [B, H, L, D]
        return self.attention(hidden_states=hidden_states, still=self, gate=gate, **options)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, gate: Tensor, scaling: float
    ) -> tuple[Tensor, Tensor]:
        """y and the scores of texts that begin at column 0; one key per query head."""
        scores = self_saliency(query, key, window=self.chunk, scaling=scaling)
        output = hybrid_chunk_attention(
            query,
            key,
            value,
            gate,
            self.query_map(query),
            self.key_map(key),
            route(scores.detach(), self.chunk, self.topk),
            chunk=self.chunk,
            scaling=scaling,
        )
        return output, scores

    def read_text(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        gate: Tensor,
        real: Tensor | None,
        scaling: float,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """y [B, H, L, D] in the columns given, the scores of the texts moved to column 0, and the
        columns in that order, [B, H, L] (None without padding)."""
        if real is None:
            output, scores = self.attend(query, key, value, gate, scaling)
            return output, scores, None
        # chunks are counted from a text's first token, wherever it stands
        order = real.logical_not().long().argsort(dim=-1, stable=True)
        order = order[:, None].expand(-1, query.shape[1], -1)
        query, key, value, gate = (compress(states, order) for states in (query, key, value, gate))
        output, scores = self.attend(query, key, value, gate, scaling)
        return compress(output, order.argsort(-1)), scores, order
