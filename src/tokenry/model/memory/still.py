"""STILL: salient and recent tokens keep softmax attention; all older ones become a linear state.

Per head, with the text in chunks of l tokens. How much a token attends to itself says what it is
worth: with a the softmax of its scores over the last l tokens, itself included, and b the same
without itself,

    score_t = sum_j a_j log((a_j + eps) / (b_j + eps))          (grows with a_t; token 0: infinity)

In each chunk the `topk` best tokens are salient. A query of chunk c sees exactly E: its own chunk
causally, chunk c - 1, and the salient tokens of chunks <= c - 2; the others of those chunks, N, are
read through a feature map phi, with e_j = exp(q . k_j * scaling - max over E):

    y = (sum_E e_j v_j + g * phi(q)^T sum_N phi(k_j) v_j^T) / (sum_E e_j + phi(q)^T sum_N phi(k_j)
        + 1e-6),     g = sigmoid(W_g x)

    phi(x) = [softmax(z), softmax(-z)],  z = |x| f(x) / |f(x)|,  f(x) = W (x - 2u u^T x), |u| = 1

so z keeps the pretrained norm of x. A cache holds two chunks, the salient tokens and one state
[2D, D] for each query head, whatever the length of the text but for the salient ones.

Source: "STILL: Selecting Tokens for Intra-Layer Hybrid Attention to Linearize LLMs" (arXiv
2602.02180). Ours: padding and rows of different lengths; the first chunk has no phantom predecessor
of zero keys (the released code lets it dilute the softmax).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, DynamicLayer

from tokenry.core.checks import within
from tokenry.core.errors import InputError, ModelError
from tokenry.model.attention.interface import observed_attention, switching_attention
from tokenry.model.attention.layers import CHANGES_SCORES, attention_layers, is_sliding
from tokenry.model.attention.masks import causal_and_padding, deferred_mask
from tokenry.model.attention.observed_layer import MARK
from tokenry.model.memory.still_attention import StillAttention
from tokenry.model.memory.still_layer import StillLayer

IMPLEMENTATION = "tokenry_still"


@dataclass(frozen=True)
class Still:
    """`Still().convert(model)` puts hybrid attention into the model, in place; then train it.

    The new weights are untrained: `learn.recipes.still` fits them. Generate with
    `past_key_values=StillCache(model)`.

    Args:
        chunk: l.
        topk: salient tokens of each chunk, 0 to l (paper: 4 of 64).
        layers: which; None is all with full attention (sliding layers stay as they are).
    """

    chunk: int = 64
    topk: int = 4
    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        within(self, "[1, inf)", "chunk", integer=True)
        within(self, f"[0, {self.chunk}]", "topk", integer=True)

    def convert(self, model: Any, seed: int = 0) -> Any:
        """Replace the attention modules by `StillAttention`s that hold them; returns the model."""
        if still_layers(model):
            raise ModelError("the model has hybrid attention already; `revert(model)` first")
        modules = attention_layers(model)
        full = [number for number, module in modules.items() if not is_sliding(module)]
        chosen = full if self.layers is None else list(self.layers)
        if not full:
            raise ModelError(f"{type(model).__name__} has no layer with full attention")
        if wrong := [number for number in chosen if number not in full]:
            raise InputError(f"layers {wrong} have no full attention; those that do: {full}")
        text = model.config.get_text_config(decoder=True)
        if getattr(text, "attn_logit_softcapping", None) is not None:
            raise ModelError(
                f"{type(model).__name__} bounds its attention scores (softcap), which hybrid "
                "attention does not"
            )
        names = {module: name for name, module in model.named_modules()}
        generator = torch.Generator().manual_seed(seed)
        with switching_attention(model, IMPLEMENTATION) as previous:
            converted = {}
            for number in chosen:  # all of them are made before one is put in
                module = modules[number]
                if not hasattr(module, "head_dim"):
                    raise ModelError(
                        f"{type(module).__name__} is built otherwise than Llama's attention (it "
                        "has no head_dim): it cannot be made hybrid"
                    )
                hybrid = StillAttention(module, self.chunk, self.topk, text, previous, generator)
                weight = next(module.parameters())
                converted[names[module]] = hybrid.to(device=weight.device).train(module.training)
            for path, hybrid in converted.items():
                parent, _, name = path.rpartition(".")
                setattr(model.get_submodule(parent), name, hybrid)
        return model


def revert(model: Any) -> Any:
    """Take the hybrid attention out again; its weights are lost."""
    names = {module: name for name, module in model.named_modules()}
    for hybrid in still_layers(model).values():
        parent, _, name = names[hybrid].rpartition(".")
        setattr(model.get_submodule(parent), name, hybrid.attention)
        model.set_attn_implementation(hybrid.previous)
    return model


def still_layers(model: Any) -> dict[int, StillAttention]:
    """The hybrid attention modules of a model by the numbers of their layers."""
    hybrids = [module for module in model.modules() if isinstance(module, StillAttention)]
    return {module.attention.layer_idx: module for module in hybrids}


class StillCache(DynamicCache):
    """The recurrent form: `model.generate(**inputs, past_key_values=StillCache(model))`."""

    def __init__(self, model: Any):
        super().__init__(config=model.config)
        converted = still_layers(model)
        if not converted:
            raise ModelError("the model has no hybrid attention; Still().convert(model) first")
        self.layers = [
            StillLayer(converted[number]) if number in converted else layer
            for number, layer in enumerate(self.layers)
        ]

    def nbytes(self) -> int:
        """Bytes held, states and salient tokens included."""
        tensors: list[Tensor] = []
        for layer in self.layers:
            if isinstance(layer, StillLayer):
                tensors += [getattr(layer, name) for name in StillLayer.rows if layer.started]
            elif isinstance(layer, DynamicLayer) and layer.keys is not None:
                assert layer.values is not None
                tensors += [layer.keys, layer.values]
        return sum(tensor.nbytes for tensor in tensors)


def still_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    still: StillAttention | None = None,
    gate: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The attention function under the name IMPLEMENTATION."""
    if still is None or gate is None:  # a layer that was not converted
        return observed_attention(
            module, query, key, value, attention_mask, scaling, dropout, **options
        )
    number, H, q = module.layer_idx, query.shape[1], query.shape[2]
    if changed := [name for name in CHANGES_SCORES if options.get(name) is not None]:
        raise ModelError(f"layer {number} has attention with {' and '.join(changed)}: not hybrid")
    cache: Any = getattr(key, MARK, None)
    if not isinstance(cache, StillLayer) and key.shape[2] != q:
        raise ModelError(
            f"layer {number} has hybrid attention, which an ordinary cache cannot continue: pass "
            "past_key_values=StillCache(model), or use_cache=False"
        )
    causal, real = causal_and_padding(attention_mask, q)
    if not causal:
        raise ModelError(
            f"layer {number} has hybrid attention, which reads a text in order; it knows neither "
            "packed texts nor trees nor masks of one's own"
        )
    factor: float = query.shape[-1] ** -0.5 if scaling is None else scaling
    teacher, _ = (
        observed_attention(module, query, key, value, attention_mask, scaling, dropout, **options)
        if still.transfer
        else (None, None)
    )
    groups = H // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    if isinstance(cache, StillLayer):
        output = cache.read(query, key, value, gate, real, factor)
        cache.waiting = False
    else:
        output, _, _ = still.read_text(query, key, value, gate, real, factor)
    output = output.to(query.dtype).transpose(1, 2).contiguous()
    if teacher is not None:
        difference = (output.float() - teacher.float()).square().mean((2, 3))
        weight = torch.ones_like(difference) if real is None else real.to(difference.dtype)
        still.transfer_loss = (difference * weight).sum() / weight.sum()
        return teacher, None
    return output, None


AttentionInterface.register(IMPLEMENTATION, still_attention)
AttentionMaskInterface.register(IMPLEMENTATION, deferred_mask)
