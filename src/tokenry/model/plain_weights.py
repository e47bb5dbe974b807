"""The weights that a model computes with, by the names of its architecture.

    W' = W + sum over active adapters of their B A scale           W itself stays as it is

What another engine needs to hold the same model: merging an adapter and taking it out again would
change W by a rounding each time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tokenry.core.errors import InputError
from tokenry.model.compat import unwrap

ADDED = ".lora_"  # in the names of what is added
REPLACED = (".modules_to_save.", ".original_module.", ".lora_magnitude")


@torch.no_grad()
def plain_weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """(name, weight) of each parameter, PEFT adapters added to what they adapt.

    Raises:
        InputError: an adapter that is no sum of weights.
    """
    plain = unwrap(model)
    place = next(name for name, module in model.named_modules() if module is plain)
    prefix = f"{place}." if place else ""
    modules = dict(model.named_modules())
    for name, weight in model.named_parameters():
        if ADDED in name:
            continue
        owner, _, kind = name.rpartition(".base_layer.")
        layer = modules.get(owner) if owner else None
        sums = layer is None or (hasattr(layer, "get_delta_weight") and not _rescaled(layer))
        if not name.startswith(prefix) or not sums or any(part in name for part in REPLACED):
            raise InputError(f"the adapter's weight {name} is not added to one of the model's")
        if layer is not None and kind == "weight":
            for adapter in layer.active_adapters:
                weight = weight + layer.get_delta_weight(adapter).to(weight.dtype)
        yield (f"{owner}.{kind}" if owner else name).removeprefix(prefix), weight.detach()


def _rescaled(layer: Any) -> bool:
    """Whether the layer is more than a sum: DoRA's magnitudes."""
    return any(getattr(layer, "use_dora", {}).values())
