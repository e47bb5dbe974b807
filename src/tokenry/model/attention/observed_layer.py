"""A cache layer that does its own attention: the base of those that choose or forget keys."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import DynamicLayer

from tokenry.core.errors import ModelError
from tokenry.model.attention.masks import StepMask

MARK = "tokenry_layer"


class ObservedLayer(DynamicLayer):
    """A cache layer that does its own attention, and may hold fewer keys than it saw.

    `seen` counts the tokens that went through the layer; it is what transformers computes positions
    from. The number of keys held may be smaller.
    """

    is_croppable = False
    rows: tuple[str, ...] = ("keys", "values")  # states with a batch dimension, None at first

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0
        self.waiting = False

    @abstractmethod
    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, new_tokens: StepMask, **options: Any
    ) -> Tensor:
        """[B, q, H, D] for this step's queries; key and value are those held, and end with this
        step's
        q tokens.

        Args:
            options: scaling, softcap and dropout.
        """

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if self.waiting:
            raise ModelError(
                "this cache was never shown the model's attention; make it with "
                "policy.cache(model), which also switches that model's attention function"
            )
        self.waiting = True
        self.seen += key_states.shape[-2]
        keys, values = self.store(key_states, value_states)
        marked = keys.view_as(keys)  # a view, or the layer and its keys would hold each other alive
        setattr(marked, MARK, self)
        return marked, values

    def store(self, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
        """Add the new tokens' keys and values and return all that are held."""
        return super().update(key_states, value_states)

    def get_seq_length(self) -> int:
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        kept = 0 if self.keys is None else self.keys.shape[-2]
        return kept + query_length, self.seen - kept

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove != 0:
            raise ModelError(
                "a cache that has evicted keys cannot forget its last tokens again; "
                "use a full cache for assisted or tree decoding"
            )

    def keep_columns(self, length: int, index: Tensor) -> None:
        """Keep the first `length` tokens and, after them, those of `index` [B, n], relative to
        `length`: the path that a tree of guesses is cut to."""
        self.crop(length + index.shape[1] - self.seen)

    def copy(self) -> ObservedLayer:
        """An independent layer in the same state."""
        return copy.copy(self)  # enough where a step replaces tensors and never writes into them

    def reset(self) -> None:
        super().reset()
        self.seen, self.waiting = 0, False

    def each_row(self, change: Callable[[Tensor], Tensor]) -> None:
        """Apply `change` to every state with a batch dimension."""
        for name in self.rows:
            if (state := getattr(self, name)) is not None:
                setattr(self, name, change(state))

    def reorder_cache(self, beam_idx: Any) -> None:
        self.each_row(lambda state: state.index_select(0, beam_idx.to(state.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.each_row(lambda state: state.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        self.each_row(lambda state: state[indices])
