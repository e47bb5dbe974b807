"""Full: every key and value is kept, in a buffer that has columns to spare.

`transformers.DynamicCache` makes a copy of all keys and values at each token. Here a new token is
written behind the others, and the buffer is copied only when they are used up, a 32nd more each
time. The attention is the same, to the last digits.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from tokenry.core.errors import InputError, ModelError
from tokenry.model.attention.dense import attend_densely
from tokenry.model.attention.masks import StepMask
from tokenry.model.attention.observed_layer import ObservedLayer
from tokenry.model.cache.policy import Example, PolicyCache, cache_policy, cache_under

COLUMNS = 512  # buffers have a multiple of this many columns


@cache_policy("full", examples=lambda: _examples())
@dataclass(frozen=True)
class Full:
    """All tokens: `model.generate(**inputs, past_key_values=Full().cache(model))`."""

    @classmethod
    def of_size(cls, size: int | float) -> "Full":
        raise InputError(f"a full cache keeps every token: it has no size, got {size}")

    def cache(self, model: Any) -> PolicyCache:
        return cache_under(self, model)

    def layer(self) -> "FullLayer":
        return FullLayer()


class FullLayer(ObservedLayer):
    """One layer's keys and values, [B, H, L, D], views of buffers with columns to spare behind
    them.

    For decoding: what is written into a buffer has no gradient.
    """

    is_croppable = True

    def __init__(self) -> None:
        super().__init__()
        self.buffers: list[Tensor] = []

    def store(self, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled() and (key_states.requires_grad or value_states.requires_grad):
            raise ModelError(
                "keys written into a cache buffer have no gradient: call the model under "
                "torch.no_grad(), or use transformers.DynamicCache"
            )
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.seen
        length = end - key_states.shape[-2]
        self.reserve((key_states, value_states), length, end)
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, length:end] = states
        self.keys, self.values = (buffer[:, :, :end] for buffer in self.buffers)
        return self.keys, self.values

    def reserve(self, like: tuple[Tensor, Tensor], length: int, end: int) -> None:
        """Buffers that can be written to up to `end`, and begin with the `length` columns there
        are.

        Args:
            like: states of their shape but for the columns.
        """
        if not self.buffers or self.buffers[0].shape[2] < end or frozen(self.buffers[0]):
            old_states = (self.keys, self.values) if length else (None, None)
            columns = self.capacity(end)
            self.buffers = [
                extended(old, new, length, columns)
                for old, new in zip(old_states, like, strict=True)
            ]

    def capacity(self, tokens: int) -> int:
        """Columns of a buffer that is made for so many tokens."""
        return -(-(tokens + max(1, tokens // 32)) // COLUMNS) * COLUMNS

    def stored(self) -> tuple[Tensor, Tensor]:
        """The keys and values there are, of a layer that has seen tokens."""
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, new_tokens: StepMask, **options: Any
    ) -> Tensor:
        return attend_densely(query, key, value, new_tokens, **options)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.seen + query_length, 0

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last `-tokens_to_remove` tokens."""
        if tokens_to_remove > 0:
            raise InputError(f"crop takes a negative count of tokens, got {tokens_to_remove}")
        if tokens_to_remove and self.is_initialized:
            self.seen = max(0, self.seen + tokens_to_remove)
            self.keys, self.values = (states[:, :, : self.seen] for states in self.stored())
            self.shortened()

    def keep_columns(self, length: int, index: Tensor) -> None:
        self.reserve(self.stored(), self.seen, self.seen)
        self.seen = length + index.shape[1]
        at = (length + index)[:, None, :, None]
        for buffer in self.buffers:
            wide = at.expand(buffer.shape[0], buffer.shape[1], -1, buffer.shape[3])
            buffer[:, :, length : self.seen] = buffer.gather(2, wide)
        self.keys, self.values = (buffer[:, :, : self.seen] for buffer in self.buffers)
        self.shortened()

    def shortened(self) -> None:
        """Called when the last tokens were dropped or changed: `seen` is what is left."""

    def copy(self) -> "FullLayer":
        twin = super().copy()
        assert isinstance(twin, FullLayer)
        twin.buffers = [buffer[:, :, : self.seen].clone() for buffer in self.buffers]
        if twin.buffers:
            twin.keys, twin.values = twin.buffers
        return twin

    def reset(self) -> None:
        super().reset()
        self.buffers = []

    def each_row(self, change: Callable[[Tensor], Tensor]) -> None:
        if self.is_initialized:
            self.buffers = [change(states[:, :, : self.seen]) for states in self.stored()]
            self.keys, self.values = self.buffers


class DecodingLayer(FullLayer):
    """The same storage under the model's own attention. A copy shares it until one of the two
    writes. There may be many rows of few tokens, so there are few columns to spare."""

    def capacity(self, tokens: int) -> int:
        return tokens + max(16, tokens // 8)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        self.seen += key_states.shape[-2]
        return self.store(key_states, value_states)

    def copy(self) -> "DecodingLayer":
        self.buffers = []
        return copy.copy(self)


def decoding_cache() -> DynamicCache:
    """An empty `DynamicCache` that keeps every token in every layer, in layers with columns to
    spare."""
    cache = DynamicCache()
    cache.layer_class_to_replicate = DecodingLayer
    return cache


def extended(old: Tensor | None, new: Tensor, length: int, capacity: int) -> Tensor:
    """A buffer [B, H, capacity, D] that begins with the `length` columns of `old`."""
    buffer = new.new_empty(*new.shape[:2], capacity, new.shape[3])
    if old is not None:
        buffer[:, :, :length] = old[:, :, :length]
    return buffer


def frozen(state: Tensor) -> bool:
    """Whether a tensor made in inference mode cannot be written to here, outside it."""
    return state.is_inference() and not torch.is_inference_mode_enabled()


def _examples() -> list[Example]:
    return [Example(Full(), Full(), Full())]
