"""What Tokenry needs of transformers beyond its documented interface, in this one module.

Written against transformers 5.20-5.23. Each function says which internals it relies on.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tokenry.core.errors import ModelError


def plain_cache() -> Any:
    """A cache that keeps every token in every layer.

    Without a model configuration DynamicCache builds no sliding-window layers, which would drop
    tokens that a later crop or fork needs; the window is enforced by the attention mask instead.
    """
    from transformers import DynamicCache

    return DynamicCache()


def keep_windows(cache: Any) -> Any:
    """An empty cache whose sliding-window layers keep every token, so that tokens can be taken back
    (layers' `is_sliding`); the window is then enforced by the attention mask."""
    from transformers import DynamicLayer

    if any(getattr(layer, "is_sliding", False) for layer in cache.layers):
        cache.layers = [
            DynamicLayer() if getattr(layer, "is_sliding", False) else layer
            for layer in cache.layers
        ]
    return cache


def select_rows(cache: Any, index: Tensor) -> None:
    """Keep the given rows, in that order, repeats allowed."""
    for layer in cache.layers:
        layer.batch_select_indices(index)


def keep_columns(cache: Any, length: int, index: Tensor) -> None:
    """Keep the first `length` columns and, after them, those of `index` [B, n] (relative to
    `length`).

    A cache policy's layer does it itself. In the others (`keys` and `values`, [B, H, L, D]) it is
    written in place: the prefix need not be copied. A sliding layer holds the latest columns alone.
    Columns that stay where they are need no copy at all.
    """
    count = index.shape[1]
    if bool((index == torch.arange(count, device=index.device)).all()):
        crop_columns(cache, length + count)
        return
    require_croppable(cache)
    for layer in cache.layers:
        if hasattr(layer, "keep_columns"):
            layer.keep_columns(length, index)
            continue
        dropped = layer.get_seq_length() - length - index.shape[1]
        start = layer.keys.shape[2] - dropped - index.shape[1]
        for states in (layer.keys, layer.values):
            if len(index) == 1:
                kept = states[:, :, start + index[0]]
            else:
                at = (start + index)[:, None, :, None]
                kept = states.gather(2, at.expand(-1, states.shape[1], -1, states.shape[3]))
            states[:, :, start : start + index.shape[1]] = kept
        crop_layer(layer, dropped)


def crop_columns(cache: Any, length: int) -> None:
    """Keep the first `length` columns, in every layer or, where one cannot, in none."""
    require_croppable(cache)
    for layer in cache.layers:
        crop_layer(layer, layer.get_seq_length() - length)


def crop_layer(layer: Any, count: int) -> None:
    """Drop the last `count` columns. (Plain layers' own `crop` changed its sign over versions.)"""
    if hasattr(layer, "keep_columns"):
        layer.crop(-count)
    elif not getattr(layer, "is_sliding", False):
        layer.keys = layer.keys[:, :, : layer.keys.shape[2] - count]
        layer.values = layer.values[:, :, : layer.values.shape[2] - count]
    elif count or layer.record_past:
        layer.crop(-count)


def require_croppable(cache: Any) -> None:
    """ModelError where the last tokens cannot be taken back.

    A sliding layer forgets what leaves its window, unless it was told to record: that is
    `cache.activate_past_recording()` of transformers, after the prompt.
    """
    for number, layer in enumerate(cache.layers):
        if not getattr(layer, "is_croppable", True):
            raise ModelError(
                f"the cache of layer {number} ({type(layer).__name__}) cannot forget its last "
                "tokens: keys were evicted; use a full cache for assisted or tree decoding"
            )
        full = getattr(layer, "is_sliding", False) and layer.keys is not None
        if full and not layer.record_past and layer.get_seq_length() >= layer.sliding_window:
            raise ModelError(
                f"the cache of layer {number} keeps a window alone: call "
                "cache.activate_past_recording() before tokens are to be taken back"
            )


def copy_cache(cache: Any) -> Any:
    """A cache of its own. Layers of transformers share their tensors with the copy, as updates
    replace them and never write into them; a cache policy's layer does what it needs."""
    twin = copy.copy(cache)
    twin.layers = [
        layer.copy() if hasattr(layer, "keep_columns") else copy.copy(layer)
        for layer in cache.layers
    ]
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


FEW_ROWS = 8  # what packed weights are laid out for; one layout serves 1 to some 32 rows


def can_pack(weight: Tensor) -> bool:
    """Whether this torch and this machine have oneDNN's packed linear kernels for the weight."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def pack_weight(weight: Tensor) -> Tensor:
    """The weight [out, in] in oneDNN's layout. (The operator is torch.compile's own.)"""
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), FEW_ROWS)


def packed_linear(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """rows [..., in] times a packed weight."""
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")


def passes_must_agree(model: Any) -> bool:
    """Whether the processes share the model's weights, so that all must make the same number of
    passes: `generate`'s own condition for `synced_gpus`."""
    from torch import distributed
    from transformers.integrations import is_deepspeed_zero3_enabled, is_fsdp_managed_module

    if not (distributed.is_available() and distributed.is_initialized()):
        return False
    sharded = is_deepspeed_zero3_enabled() or is_fsdp_managed_module(model)
    return bool(sharded) and distributed.get_world_size() > 1


def any_process(condition: bool, together: bool) -> bool:
    """Whether the condition holds in this process, or `together` in any."""
    if not together:
        return condition
    from torch import distributed

    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    flag = torch.tensor(int(condition), device=device)
    distributed.all_reduce(flag, op=distributed.ReduceOp.MAX)
    return bool(flag)


@contextmanager
def own_distribution(model: Any) -> Iterator[None]:
    """`model.generate` follows its arguments alone, not the model's generation settings.

    `generate` fills whatever its arguments leave open from `model.generation_config`, even when it
    is given a configuration of its own.
    """
    from transformers import GenerationConfig, PreTrainedModel

    owner = next(part for part in model.modules() if isinstance(part, PreTrainedModel))
    settings = owner.generation_config
    owner.generation_config = GenerationConfig()
    try:
        yield
    finally:
        owner.generation_config = settings


def window(model: Any) -> int | None:
    """Tokens that the model has positions for; None where it does not say."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def of_row(given: Any, row: int) -> Any:
    """A logits processor or stopping criterion of `generate` for one row of its batch.

    Most judge every row by itself. These do not: they count the rows, hold an array over rows, or
    remember what they were called with (attributes of the classes named here).
    """
    kind = type(given).__name__
    if kind == "PrefixConstrainedLogitsProcessor":
        allowed = given._prefix_allowed_tokens_fn
        return type(given)(lambda _, ids: allowed(row, ids), 1)
    if kind == "UnbatchedClassifierFreeGuidanceLogitsProcessor":
        context = given.unconditional_context
        ids, attention = context["input_ids"], context["attention_mask"]
        return type(given)(
            given.guidance_scale,
            given.model,
            None if ids is None else ids[row : row + 1],
            None if attention is None else attention[row : row + 1],
            context["use_cache"],
        )
    if kind == "SynthIDTextWatermarkLogitsProcessor":
        return copy.deepcopy(given)
    arrays = {
        "RepetitionPenaltyLogitsProcessor": "prompt_ignore_length",
        "EncoderRepetitionPenaltyLogitsProcessor": "encoder_input_ids",
        "EncoderNoRepeatNGramLogitsProcessor": "generated_ngrams",
    }
    array = getattr(given, arrays.get(kind, ""), None)
    if array is None or isinstance(array, int):
        return given
    own = copy.copy(given)
    setattr(own, arrays[kind], array[row : row + 1])
    if hasattr(own, "batch_size"):
        own.batch_size = 1
    return own


def withheld_arguments() -> dict[str, Any]:
    """Arguments of the running `generate` that it does not hand to a function given as
    `custom_generate`, from the locals of its frame; empty outside of `generate`."""
    frame = sys._getframe(1)
    while frame is not None and "custom_generate" not in frame.f_locals:
        frame = frame.f_back
    found = {} if frame is None else frame.f_locals
    return {name: found.get(name) for name in ("assistant_model", "streamer", "synced_gpus")}
