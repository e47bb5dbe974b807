"""How much each layer changes its hidden states: those that change little may be sparse."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokenry.core.checks import in_range
from tokenry.core.errors import ModelError, ShapeError
from tokenry.model.attention.layers import attention_layers, is_sliding


@torch.no_grad()
def layer_drift(model: Any, ids: Tensor, attention: Tensor | None = None) -> Tensor:
    """How much each decoder layer changes its hidden states, [layers] float32, of sum 1.

    The mean over the tokens of ids [B, T] of |output - input| / |input|.

    Layers that change little may be sparse.

    Args:
        attention: [B, T], False on padding.
    """
    real = torch.ones_like(ids) if attention is None else attention
    if real.shape != ids.shape or not real.any():
        raise ShapeError(f"attention must mark tokens of {list(ids.shape)}: {list(real.shape)}")
    names = {module: name for name, module in model.named_modules()}
    drift: dict[int, Tensor] = {}

    def hook_of(number: int) -> Any:
        def read(_: Any, args: Any, kwargs: Any, output: Any) -> None:
            before = (args[0] if args else kwargs["hidden_states"]).float()
            after = (output if isinstance(output, Tensor) else output[0]).float()
            change = (after - before).norm(dim=-1) / (before.norm(dim=-1) + 1e-8)
            drift[number] = change[real.bool()].mean()

        return read

    # `output_hidden_states` shows the last layer only after the final norm, hence hooks that read
    hooks = []
    try:
        for number, module in attention_layers(model).items():
            layer = model.get_submodule(names[module].rpartition(".")[0])
            hooks.append(layer.register_forward_hook(hook_of(number), with_kwargs=True))
        model(input_ids=ids, attention_mask=real.long(), use_cache=False, logits_to_keep=1)
    finally:
        for hook in hooks:
            hook.remove()
    total = torch.stack([drift[number] for number in sorted(drift)])
    return total / total.sum()


def low_drift_layers(
    model: Any, ids: Tensor, attention: Tensor | None = None, *, quantile: float = 0.5
) -> tuple[int, ...]:
    """The layers with full attention whose drift on a text is at most this quantile of theirs."""
    in_range("quantile", quantile, "[0, 1]")
    drift = layer_drift(model, ids, attention)
    full = [number for number, module in attention_layers(model).items() if not is_sliding(module)]
    if not full:
        raise ModelError(f"{type(model).__name__} has no layer with full attention")
    limit = drift[full].quantile(quantile)
    return tuple(number for number in full if drift[number] <= limit)
