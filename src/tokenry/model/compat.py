"""What Tokenry needs of transformers beyond its documented interface, in this one module.

Written against transformers 5.20-5.23. Each function says which internals it relies on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def plain_cache() -> Any:
    """A cache that keeps every token in every layer.

    Without a model configuration DynamicCache builds no sliding-window layers, which would drop
    tokens that a later crop or fork needs; the window is enforced by the attention mask instead.
    """
    from transformers import DynamicCache

    return DynamicCache()


def cache_length(cache: Any) -> int:
    """Columns held by the cache."""
    return int(cache.get_seq_length())


def select_rows(cache: Any, index: Tensor) -> None:
    """Keep the given rows, in that order, repeats allowed (layers' `keys` and `values`)."""
    for layer in cache.layers:
        layer.keys = layer.keys.index_select(0, index)
        layer.values = layer.values.index_select(0, index)


def keep_columns(cache: Any, length: int, index: Tensor) -> None:
    """Keep the first `length` columns and, after them, those of `index` (relative to `length`).

    Written in place (layers' `keys` and `values`, [B, H, L, D]): the prefix need not be copied.
    """
    for layer in cache.layers:
        for name in ("keys", "values"):
            states = getattr(layer, name)
            states[:, :, length : length + len(index)] = states[:, :, length + index]
            setattr(layer, name, states[:, :, : length + len(index)])


def crop_columns(cache: Any, length: int) -> None:
    """Keep the first `length` columns. (DynamicCache.crop's argument changed sign over
    versions.)"""
    for layer in cache.layers:
        layer.keys = layer.keys[:, :, :length]
        layer.values = layer.values[:, :, :length]


def copy_cache(cache: Any) -> Any:
    """A cache of its own on the same tensors, which later updates replace but never write into."""
    from transformers import DynamicCache

    twin = DynamicCache()
    for number, layer in enumerate(cache.layers):
        twin.update(layer.keys, layer.values, number)
    return twin


def mask_argument(config: Any, allowed: Tensor, key_distance: Tensor, dtype: torch.dtype) -> Any:
    """A 4-D attention mask in the form that the model takes.

    allowed: [B, 1, Q, K] bool. key_distance: [B, 1, Q, K], how many positions the key lies before
    the query. Models with sliding layers take one mask per attention type (their forward uses a
    mapping as it is); the others take one tensor.
    """
    config = config.get_text_config()
    types = set(getattr(config, "layer_types", None) or ())

    def additive(mask: Tensor) -> Tensor:
        return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)

    if not types or types == {"full_attention"}:
        return additive(allowed)
    masks = {"full_attention": additive(allowed)}
    for kind in types - {"full_attention"}:
        if kind != "sliding_attention":
            raise NotImplementedError(f"attention of type {kind}")
        masks[kind] = additive(allowed & (key_distance < config.sliding_window))
    return masks
