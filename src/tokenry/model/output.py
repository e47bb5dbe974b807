"""The output layer of a model, with what the model does to its logits.

    logits = softcap * tanh( scale * (h W^T + bias) / softcap ),        h: the last hidden state

Cohere multiplies by `logit_scale`, Granite divides by `logits_scaling`, Falcon-H1 multiplies by
`lm_head_multiplier`, Gemma bounds with `final_logit_softcapping`; most models do neither. Whoever
applies the output layer to states of their own goes through this module. It is checked, not
assumed: at first use the model's own logits for two tokens are compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from tokenry.core.errors import ModelError
from tokenry.core.linear_head import LinearHead
from tokenry.model import compat
from tokenry.model.kernels.packed import PackedLinear
from tokenry.model.modes import evaluating

SOFT_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
_known: WeakKeyDictionary[Any, tuple[LinearHead | None, bool]] = WeakKeyDictionary()


def linear_head(model: Any) -> LinearHead | None:
    """The output layer of a model whose logits are a linear map of the last hidden state, up to a
    scale and a soft cap; None for any other."""
    shape, linear = _tried(model)
    if shape is None or not linear:
        return None
    layer = output_layer(model)
    return replace(shape, weight=layer.weight, bias=layer.bias)


def required_head(model: Any) -> LinearHead:
    """`linear_head`, or a ModelError that says why there is none."""
    head = linear_head(model)
    if head is None:
        raise _refusal(model)
    return head


def output_logits(model: Any, states: Tensor) -> Tensor:
    """Logits [..., V], float32, of last hidden states [..., D]: those that the model would give.

    Differentiable, and by the layer itself, which may be an adapter's or a packed one.

    Raises:
        ModelError: the model's logits are something else than its output layer's, scaled.
    """
    if (shape := _tried(model)[0]) is None:
        raise _refusal(model)
    layer = compat.unwrap(model).get_output_embeddings()
    weight = getattr(layer, "weight", None)
    if weight is not None and weight.is_floating_point():  # a quantized layer takes what comes
        states = states.to(weight.dtype)
    return shape.shaped(layer(states).float())


def output_layer(model: Any) -> Any:
    """The output layer, without the faster layout of `model.kernels.packed`."""
    layer = compat.unwrap(model).get_output_embeddings()
    return layer.linear if isinstance(layer, PackedLinear) else layer


@contextmanager
def last_hidden(model: Any) -> Iterator[list[Tensor]]:
    """Within, every forward pass leaves the states [B, T, D] that its output layer reads."""
    caught: list[Tensor] = []
    decoder = compat.decoder_of(model)
    hook = decoder.register_forward_hook(lambda _module, _inputs, output: caught.append(output[0]))
    try:
        yield caught
    finally:
        hook.remove()


def _refusal(model: Any) -> ModelError:
    plain = compat.unwrap(model)
    return ModelError(
        f"the logits of {type(plain).__name__} are not those of its output layer "
        f"({type(output_layer(plain)).__name__}), scaled or bounded, so it cannot be applied to "
        "other states"
    )


def _tried(model: Any) -> tuple[LinearHead | None, bool]:
    """Soft cap and temperature, in a head without weights, None where they are not all that is done
    to what the output layer gives; and whether that is what its weight and bias give."""
    plain = compat.unwrap(model)
    if plain not in _known:
        config = plain.config.get_text_config()
        caps = (getattr(config, name, None) for name in SOFT_CAPS)
        cap = next((value for value in caps if value is not None), None)
        _known[plain] = _try(plain, LinearHead(torch.empty(0, 0), None, cap, _temperature(config)))
    return _known[plain]


def _try(plain: Any, shape: LinearHead) -> tuple[LinearHead | None, bool]:
    layer = output_layer(plain)
    if layer is None:
        return None, False
    device = plain.get_input_embeddings().weight.device
    ids = torch.tensor([compat.probe_ids(plain, 2)], device=device)
    with evaluating(plain), last_hidden(plain) as caught:
        logits = plain(input_ids=ids, use_cache=False).logits.float()
        if not caught or caught[-1].shape[:2] != ids.shape:
            return None, False
        states = caught[-1]
        raw = layer(states).float()
    precise = states.dtype in (torch.float32, torch.float64)

    def holds(raw: Tensor) -> bool:
        if raw.shape != logits.shape:
            return False
        off = (shape.shaped(raw) - logits).abs().max() / logits.abs().max().clamp_min(1e-9)
        return bool(off < (1e-3 if precise else 5e-2))

    linear = type(layer) is nn.Linear
    return (
        shape if holds(raw) else None,
        linear and holds(nn.functional.linear(states, layer.weight, layer.bias).float()),
    )


def _temperature(config: Any) -> float:
    """What the logits are divided by."""
    temperature = 1.0
    for name, divides in (
        ("logits_scaling", True),
        ("logit_scale", False),
        ("lm_head_multiplier", False),
    ):
        value = getattr(config, name, None)
        if isinstance(value, int | float) and value > 0:
            temperature *= value if divides else 1 / value
    return temperature
