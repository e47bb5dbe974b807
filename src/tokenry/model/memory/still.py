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
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, DynamicLayer

from tokenry.core.checks import within
from tokenry.core.errors import InputError, ModelError
from tokenry.model.attention.hybrid import (
    NormPreservingFeatureMap,
    hybrid_chunk_attention,
    route,
    self_saliency,
)
from tokenry.model.attention.interface import (
    MARK,
    deferred_mask,
    observed_attention,
    switching_attention,
)
from tokenry.model.attention.token_sparse import (
    CHANGES_SCORES,
    attention_layers,
    causal_and_padding,
    compress,
    is_sliding,
)
from tokenry.model.memory.still_layer import StillLayer

IMPLEMENTATION = "tokenry_still"


@dataclass(frozen=True)
class Still:
    """`Still().convert(model)` puts hybrid attention into the model, in place; then train it.

    chunk: l. topk: salient tokens of each chunk, 0 to l (paper: 4 of 64). layers: which; None is
    all with full attention (sliding layers stay as they are). The new weights are untrained:
    `learn.recipes.still` fits them. Generate with `past_key_values=StillCache(model)`.
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
        previous = text._attn_implementation
        names = {module: name for name, module in model.named_modules()}
        generator = torch.Generator().manual_seed(seed)
        with switching_attention(model, IMPLEMENTATION):
            converted = {}
            for number in chosen:  # all of them are made before one is put in
                module = modules[number]
                if not hasattr(module, "head_dim"):
                    raise ModelError(
                        f"{type(module).__name__} is built otherwise than Llama's attention (it "
                        "has no head_dim): it cannot be made hybrid"
                    )
                hybrid = StillAttention(module, self, text, previous, generator)
                weight = next(module.parameters())
                converted[names[module]] = hybrid.to(device=weight.device).train(module.training)
            for place, hybrid in converted.items():
                parent, _, name = place.rpartition(".")
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
    found = [module for module in model.modules() if isinstance(module, StillAttention)]
    return {module.attention.layer_idx: module for module in found}


class StillAttention(nn.Module):
    """An attention module's projections with hybrid attention between them.

    With `transfer` set, it gives the softmax attention that it would have replaced, and leaves the
    mean square of the difference in `transfer_loss`.
    """

    def __init__(
        self,
        attention: Any,
        policy: Still,
        config: Any,
        previous: str,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        heads, dim = config.num_attention_heads, attention.head_dim
        self.attention, self.policy, self.previous = attention, policy, previous
        self.query_map = NormPreservingFeatureMap(heads, dim, generator)
        self.key_map = NormPreservingFeatureMap(heads, dim)
        self.key_map.load_state_dict(self.query_map.state_dict())
        self.gate = nn.Linear(config.hidden_size, heads * dim, bias=False)
        nn.init.zeros_(self.gate.weight)  # g = 1/2
        self.transfer = False
        self.transfer_loss: Tensor | None = None

    def new_weights(self) -> list[nn.Parameter]:
        """The weights that the pretrained model does not have."""
        parts = (self.query_map, self.key_map, self.gate)
        return [weight for part in parts for weight in part.parameters()]

    def forward(self, hidden_states: Tensor, **options: Any) -> Any:
        gate = self.gate(hidden_states.to(self.gate.weight.dtype)).float().sigmoid()
        gate = gate.unflatten(-1, (-1, self.attention.head_dim)).transpose(1, 2)  # [B, H, L, D]
        return self.attention(hidden_states=hidden_states, still=self, gate=gate, **options)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, gate: Tensor, scaling: float
    ) -> tuple[Tensor, Tensor]:
        """y and the scores of texts that begin at column 0; one key per query head."""
        policy = self.policy
        scores = self_saliency(query, key, window=policy.chunk, scaling=scaling)
        output = hybrid_chunk_attention(
            query,
            key,
            value,
            gate,
            self.query_map(query),
            self.key_map(key),
            route(scores.detach(), policy.chunk, policy.topk),
            chunk=policy.chunk,
            scaling=scaling,
        )
        return output, scores

    def read_text(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        gate: Tensor,
        real: Tensor | None,
        scaling: float,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """y [B, H, L, D] in the columns given, the scores of the texts moved to column 0, and the
        columns in that order, [B, H, L] (None without padding)."""
        if real is None:
            output, scores = self.attend(query, key, value, gate, scaling)
            return output, scores, None
        # chunks are counted from a text's first token, wherever it stands
        order = real.logical_not().long().argsort(dim=-1, stable=True)
        order = order[:, None].expand(-1, query.shape[1], -1)
        query, key, value, gate = (compress(states, order) for states in (query, key, value, gate))
        output, scores = self.attend(query, key, value, gate, scaling)
        return compress(output, order.argsort(-1)), scores, order


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
        held: list[Tensor] = []
        for layer in self.layers:
            if isinstance(layer, StillLayer):
                held += [getattr(layer, name) for name in StillLayer.rows if layer.started]
            elif isinstance(layer, DynamicLayer) and layer.keys is not None:
                assert layer.values is not None
                held += [layer.keys, layer.values]
        return sum(tensor.nbytes for tensor in held)


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
