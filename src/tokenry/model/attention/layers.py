"""The attention modules of a model, and what each of them sees of a text."""

from __future__ import annotations

from typing import Any

from torch import nn

from tokenry.core.errors import ModelError

CHANGES_SCORES = ("softcap", "position_bias", "s_aux")
"""Options of an attention function that change its scores: not every method knows them."""


def attention_layers(model: Any) -> dict[int, nn.Module]:
    """The modules that compute self-attention, by the number of their layer."""
    modules = {
        module.layer_idx: module
        for module in model.modules()
        if isinstance(getattr(module, "layer_idx", None), int) and hasattr(module, "is_causal")
    }
    if not modules:
        raise ModelError(f"{type(model).__name__} has no attention layers that say their number")
    return dict(sorted(modules.items()))


def is_sliding(module: Any) -> bool:
    """Whether an attention module sees a window of its text alone."""
    config, number = module.config, module.layer_idx
    types = getattr(config, "layer_types", None)
    if types is not None:
        return types[number] != "full_attention"
    return getattr(config, "sliding_window", None) is not None
