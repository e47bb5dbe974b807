"""A transformer's blocks as maps of parts: what each input token puts into every state.

The state of position i is a sum of parts, one for each input token k and one for all biases:

    x_i = Σ_k x_{i⇐k} + x_{i⇐bias}                       parts [K + 1, T, D], the bias last

With the model's own coefficients held fixed, every step is linear in the parts, and their sum stays
the model's state exactly:

    attention      Σ_j α_ij W_O W_V x_{j⇐k}               α as the model computed it
    LayerNorm      (x_{i⇐k} - mean x_{i⇐k}) / std_i ⊙ γ    std_i of the whole state; β to the bias
    RMSNorm        x_{i⇐k} / rms_i ⊙ γ
    activation     (g(z) / z) ⊙ z_{i⇐k}                   the secant through 0 at the whole z
    gated          silu(gate_i) ⊙ up_{i⇐k}                the gate of the whole state

Known are decoders of Llama's kind (Mistral, Qwen, SmolLM, Gemma with its norms behind the
sublayers) and encoders of BERT's (norms behind the residual; RoBERTa, ELECTRA). A model that is
built otherwise is refused, by its parts' names or because the sum is not its state.

Source: DecompX: Explaining Transformers Decisions by Propagating Token Decomposition (arXiv
2306.02873). The decoder's steps are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tokenry.core.errors import InputError, ModelError, ShapeError
from tokenry.model.attention.interface import attending_by
from tokenry.model.modes import evaluation_mode
from tokenry.model.score import unwrap

MAX_TOKENS = 256


class Block(Protocol):
    """One layer, in two steps on the parts [K + 1, T, D] of the residual stream."""

    def attend(self, parts: Tensor, weights: Tensor) -> Tensor:
        """Behind the attention sublayer.

        Args:
            weights: the layer's attention [H, T, T].
        """
        ...

    def feed_forward(self, parts: Tensor) -> Tensor:
        """Behind the feed-forward sublayer."""
        ...

    def skip_feed_forward(self, parts: Tensor) -> Tensor:
        """The same with the feed-forward's own writing left out of the parts, not of the norm."""
        ...


@dataclass(frozen=True)
class Observation:
    """What a model computed for one text: states [T, D] before each layer and behind the last,
    attention [H, T, T] of each layer, and its output."""

    states: tuple[Tensor, ...]
    attention: tuple[Tensor, ...]
    output: Any


@torch.no_grad()
def observe(model: Any, ids: Tensor, max_tokens: int = MAX_TOKENS) -> Observation:
    """Read `ids` [T] with the attention probabilities shown.

    The model is in evaluation mode and under its plain attention function meanwhile. Raises
    InputError beyond `max_tokens`: the parts are T·T·D numbers.
    """
    if ids.ndim != 1 or not len(ids):
        raise ShapeError(f"one text of at least one token is attributed, got {list(ids.shape)}")
    if len(ids) > max_tokens:
        width = unwrap(model).config.get_text_config().hidden_size
        raise InputError(
            f"{len(ids)} tokens would take {len(ids) ** 2 * width * 4 / 2**20:.0f} MB for the parts"
            f" of one layer; the limit is {max_tokens} tokens: attribute sentence by sentence, as "
            "FrugalPrompt does, or raise max_tokens"
        )
    device = unwrap(model).get_input_embeddings().weight.device
    with plain_attention(model):
        output = model(
            input_ids=ids[None].to(device), output_attentions=True, output_hidden_states=True
        )
    if not output.attentions or output.attentions[0] is None:
        raise ModelError(f"{type(unwrap(model)).__name__} does not show its attention")
    states = tuple(state[0].float() for state in output.hidden_states)
    return Observation(states, tuple(layer[0].float() for layer in output.attentions), output)


@contextmanager
def plain_attention(model: Any) -> Iterator[None]:
    """Evaluation mode and the attention function that forms its probabilities, for a while."""
    with evaluation_mode(model), attending_by(unwrap(model), "eager"):
        yield


def blocks_of(model: Any) -> list[Block]:
    """The layers of a decoder or an encoder.

    Raises:
        ModelError: a layer of another build.
    """
    plain = unwrap(model)
    base = plain.get_decoder() if _is_decoder(plain) else plain.base_model
    layers = getattr(base, "layers", None) or getattr(getattr(base, "encoder", None), "layer", None)
    if layers is None:
        raise ModelError(f"{type(plain).__name__}: no layers of Llama's or BERT's kind are in it")
    return [_block(layer, number) for number, layer in enumerate(layers)]


def _is_decoder(plain: Any) -> bool:
    return hasattr(plain, "get_decoder") and hasattr(plain.get_decoder() or plain, "layers")


def _block(layer: Any, number: int) -> Block:
    attention, mlp = getattr(layer, "self_attn", None), getattr(layer, "mlp", None)
    if all(hasattr(attention, name) for name in ("v_proj", "o_proj")) and all(
        hasattr(mlp, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn")
    ):
        return DecoderBlock(layer)
    if hasattr(layer, "intermediate") and hasattr(getattr(layer, "attention", None), "self"):
        return EncoderBlock(layer)
    raise ModelError(
        f"layer {number} is a {type(layer).__name__}: attribution knows gated layers of Llama's "
        "kind and post-norm layers of BERT's"
    )


@dataclass(frozen=True)
class DecoderBlock:
    """x + [norm] Attention(norm x), then x + [norm] MLP(norm x); the norms in brackets are
    Gemma's."""

    layer: Any

    def attend(self, parts: Tensor, weights: Tensor) -> Tensor:
        layer = self.layer
        read = normed(layer.input_layernorm, parts)
        values = affine(layer.self_attn.v_proj, read)
        written = affine(layer.self_attn.o_proj, mixed(values, weights, layer.self_attn.head_dim))
        if self._norms_behind:
            written = normed(layer.post_attention_layernorm, written)
        return parts + written

    def feed_forward(self, parts: Tensor) -> Tensor:
        layer, mlp = self.layer, self.layer.mlp
        behind = self._norms_behind
        before = layer.pre_feedforward_layernorm if behind else layer.post_attention_layernorm
        read = normed(before, parts)
        gate = mlp.act_fn(applied(mlp.gate_proj, read.sum(0)))  # [T, F]
        written = affine(mlp.down_proj, gate * affine(mlp.up_proj, read))
        if behind:
            written = normed(layer.post_feedforward_layernorm, written)
        return parts + written

    def skip_feed_forward(self, parts: Tensor) -> Tensor:
        return parts

    @property
    def _norms_behind(self) -> bool:
        return hasattr(self.layer, "pre_feedforward_layernorm")


@dataclass(frozen=True)
class EncoderBlock:
    """LN(x + Attention x), then LN(x + MLP x)."""

    layer: Any

    def attend(self, parts: Tensor, weights: Tensor) -> Tensor:
        attention = self.layer.attention
        values = affine(attention.self.value, parts)
        mixture = mixed(values, weights, attention.self.attention_head_size)
        written = affine(attention.output.dense, mixture)
        return normed(attention.output.LayerNorm, parts + written)

    def feed_forward(self, parts: Tensor) -> Tensor:
        written = affine(self.layer.output.dense, self._activated(parts))
        return normed(self.layer.output.LayerNorm, parts + written)

    def skip_feed_forward(self, parts: Tensor) -> Tensor:
        whole = parts.sum(0)
        written = affine(self.layer.output.dense, self._activated(whole[None]))[0]
        return normed(self.layer.output.LayerNorm, parts, whole + written)

    def _activated(self, parts: Tensor) -> Tensor:
        middle = affine(self.layer.intermediate.dense, parts)
        return activated(self.layer.intermediate.intermediate_act_fn, middle)


def affine(module: Any, parts: Tensor) -> Tensor:
    """W x + b of the sum, as parts: W of each, and b to the last. Any affine module will do."""
    bias = applied(module, parts.new_zeros(1, parts.shape[-1]))
    # in a decoder the parts of later tokens are empty: half of the work need not be done
    filled = parts.any(-1)
    mapped = parts.new_zeros(*parts.shape[:-1], bias.shape[-1])
    mapped[filled] = applied(module, parts[filled]) - bias
    mapped[-1] += bias
    return mapped


def applied(module: Any, states: Tensor) -> Tensor:
    """A module in its own precision on float32 states."""
    return module(states.to(next(module.parameters()).dtype)).float()


def mixed(values: Tensor, weights: Tensor, head_dim: int) -> Tensor:
    """Attention's averages of values [K, T, Hkv·D] by weights [H, T, T]: [K, T, H·D]."""
    K, T, _ = values.shape
    heads = values.view(K, T, -1, head_dim)  # [K, T, Hkv, D]
    grouped = weights.view(heads.shape[2], -1, T, T)  # [Hkv, G, T, T]
    return torch.einsum("ngij,kjnd->kingd", grouped, heads).reshape(K, T, -1)


def normed(module: Any, parts: Tensor, whole: Tensor | None = None) -> Tensor:
    """LayerNorm or RMSNorm with the statistics of `whole` [T, D] (default: the parts' sum)."""
    whole = parts.sum(0) if whole is None else whole
    epsilon = getattr(module, "eps", getattr(module, "variance_epsilon", 1e-6))
    if isinstance(module, nn.LayerNorm):
        deviation = (whole.var(-1, unbiased=False, keepdim=True) + epsilon).sqrt()
        centred = parts - parts.mean(-1, keepdim=True)
        scaled = centred / deviation * module.weight.float()
        if module.bias is not None:
            scaled[-1] += module.bias.float()
        return scaled
    # What an RMSNorm multiplies by, γ or 1 + γ, is what it makes of ones.
    gain = applied(module, torch.ones_like(whole[:1])) * (1 + epsilon) ** 0.5
    return parts * (whole.square().mean(-1, keepdim=True) + epsilon).rsqrt() * gain


def activated(function: Callable[[Tensor], Tensor], parts: Tensor) -> Tensor:
    """(g(z) / z) of the whole z times each part."""
    whole = parts.sum(0)
    near = whole.abs() < 1e-6  # there g'(0) stands for g(z) / z
    safe = torch.where(near, torch.full_like(whole, 1e-3), whole)
    return parts * (function(safe) / safe)
