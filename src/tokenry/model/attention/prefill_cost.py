"""FLOPs of attention in a prompt's pass, dense and as a sparse method spends them."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class PrefillCost:
    """What attention cost in the layers with full attention, of one prompt.

    Args:
        attended: for each sparse layer, the tokens that each head read, [B].
        dense_flops: 2 per multiply-add of the two products with softmax weights; the sparse count
            includes the scores of the window's queries, by which tokens are selected.
        sparse_flops: as `dense_flops`.
    """

    attended: dict[int, Tensor] = field(default_factory=dict)
    dense_flops: int = 0
    sparse_flops: int = 0

    def clear(self) -> None:
        self.attended, self.dense_flops, self.sparse_flops = {}, 0, 0

    def count(
        self, layer: int, query: Tensor, length: Tensor, attended: Tensor | None, window: int
    ) -> None:
        """Add one layer.

        Args:
            query: [B, H, L, D].
            length: [B], the texts' tokens.
            attended: [B], those that each head read; None: all of them.
            window: queries that were scored for it.
        """
        B, H, L, D = query.shape
        per_pair = 4 * D * H  # q . k and weight * v
        dense = per_pair * pairs(length)
        self.dense_flops += dense
        if attended is None:
            self.sparse_flops += dense
            return
        self.attended[layer] = attended
        scores = 2 * D * H * window * L * B
        self.sparse_flops += per_pair * pairs(attended) + scores


def pairs(length: Tensor) -> int:
    """How many (query, key) pairs causal attention has in texts of these lengths."""
    return int((length * (length + 1) // 2).sum())
