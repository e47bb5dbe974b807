"""Window recurrence: a pretrained decoder that reads a long text window by window, and remembers.

The text is cut into windows of W tokens; each is read alone, at positions 0 .. W - 1. What the
former ones said comes as one vector:

    r_j   = g([mean of the states of window j ; r_(j-1)])        g: a small feed-forward net
    k, v  = K norm(r_j), V norm(r_j)                              of the insertion layer, its own

and in window j + 1 every query of the insertion layer may attend to (k, v) as to one more position,
whose key is not rotated, as position 0. Memory per window is constant. All weights are fine-tuned;
the gradient of a window's loss flows back through r for `horizon` windows. Without the extra
position it is the model as it was, window by window.

    recurrent = WindowRecurrence(model, window=64)
    loss = recurrent(ids, labels=ids).loss            # any training loop
    output = recurrent(more_ids, memory=output.memory)

Source: Making the Most of your Model: Methods for Finetuning and Applying Pretrained Transformers
(arXiv 2408.16241), after Adding Recurrence to Pretrained Transformers for Improved Efficiency and
Context Size (arXiv 2008.07027). The net's form and the place of the extra position are
reconstructed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import DynamicCache, DynamicLayer

from tokenry.core.checks import in_range
from tokenry.core.errors import InputError, ModelError, ShapeError
from tokenry.model.attention.dense import attend_in_chunks
from tokenry.model.attention.interface import observe_attention
from tokenry.model.attention.masks import BlockOfQueries
from tokenry.model.attention.observed_layer import ObservedLayer


@dataclass(frozen=True)
class WindowMemory:
    """What the windows so far have left: r [B, D], and the rows [B] that have any."""

    state: Tensor
    there: Tensor


def detached(memory: WindowMemory | None) -> WindowMemory | None:
    return None if memory is None else WindowMemory(memory.state.detach(), memory.there)


@dataclass(frozen=True)
class RecurrentOutput:
    """logits [B, T, V], the mean loss over the labels (None without), the memory behind them."""

    logits: Tensor
    loss: Tensor | None
    memory: WindowMemory | None


class WindowRecurrence(nn.Module):
    """A causal model of transformers with a recurrent state between windows.

    The model gets the attention function that shows cache layers its queries; its outputs elsewhere
    stay the same.

    Args:
        window: W.
        layer: the insertion layer; None: the middle one.
        pool_layer: whose states are averaged, in the numbering of `hidden_states` (-1: the last).
        inner: width of g; None: the model's.
        horizon: how many windows the gradient of a window's loss goes back, at least 1; a text of
            more than horizon + 1 windows is read up to horizon + 1 times for it.
        previous: whether g also sees the former r.
    """

    def __init__(
        self,
        model: Any,
        window: int = 64,
        *,
        layer: int | None = None,
        pool_layer: int = -1,
        inner: int | None = None,
        horizon: int = 4,
        previous: bool = True,
    ):
        super().__init__()
        in_range("window", window, "[1, inf)", integer=True)
        in_range("horizon", horizon, "[1, inf)", integer=True)
        in_range("inner", inner, "[1, inf)", integer=True, optional=True)
        self.model, self.window, self.horizon = model, window, horizon
        self.pool_layer, self.previous = pool_layer, previous
        blocks = decoder_layers(model)
        self.layer = len(blocks) // 2 if layer is None else layer
        if not 0 <= self.layer < len(blocks):
            raise InputError(f"layer {layer} is none of the model's 0 to {len(blocks) - 1}")
        projections(blocks[self.layer])  # says now if the model has none
        size = model.config.get_text_config().hidden_size
        width = inner or size
        self.update = nn.Sequential(
            nn.LayerNorm(2 * size if previous else size),
            nn.Linear(2 * size if previous else size, width),
            nn.GELU(),
            nn.Linear(width, size),
        ).to(next(model.parameters()).device)
        observe_attention(model)

    def forward(
        self,
        ids: Tensor,
        attention: Tensor | None = None,
        labels: Tensor | None = None,
        memory: WindowMemory | None = None,
        recurrent: bool = True,
    ) -> RecurrentOutput:
        """Read ids [B, T], padded on either side where `attention` is False.

        Args:
            labels: [B, T], position t is token t, -100 where it does not count; `ids` for all.
            memory: of an earlier call, whose text this one goes on from.
            recurrent: False reads every window by itself, as the model did.
        """
        attention = torch.ones_like(ids).bool() if attention is None else attention.bool()
        if ids.ndim != 2 or attention.shape != ids.shape:
            raise ShapeError(
                f"ids must be [B, T] and attention alike; got {list(ids.shape)} and "
                f"{list(attention.shape)}"
            )
        # real tokens first, so that where windows are cut does not depend on the padding
        order = attention.long().argsort(dim=1, descending=True, stable=True)
        ids, real = ids.gather(1, order), attention.gather(1, order)
        parts = [slice(at, at + self.window) for at in range(0, ids.shape[1], self.window)]
        memory = detached(memory)
        before, logits = [memory], []
        for number, part in enumerate(parts):
            first = number - self.horizon
            if first > 0 and recurrent and torch.is_grad_enabled():
                # the way back to window `first` alone: what it was told is a constant
                memory = detached(before[first])
                for again in parts[first:number]:
                    _, memory = self._read(ids[:, again], real[:, again], memory, recurrent)
            of_part, memory = self._read(ids[:, part], real[:, part], memory, recurrent)
            logits.append(of_part)
            before.append(memory)
        back = order.argsort(dim=1)
        joined = torch.cat(logits, dim=1)
        joined = joined.gather(1, back[..., None].expand_as(joined))
        loss = None if labels is None else self._loss(joined, labels, attention)
        return RecurrentOutput(joined, loss, memory)

    def _read(
        self, ids: Tensor, real: Tensor, memory: WindowMemory | None, recurrent: bool
    ) -> tuple[Tensor, WindowMemory]:
        """Logits of one window, and the memory behind it."""
        output = self.model(
            input_ids=ids,
            attention_mask=real.long(),
            past_key_values=self.cache(memory if recurrent else None),
            use_cache=True,
            output_hidden_states=True,
        )
        return output.logits, self._remember(memory, output.hidden_states[self.pool_layer], real)

    def cache(self, memory: WindowMemory | None) -> Any:
        """A cache for the tokens of one window, in which the model itself can generate on:
        `model.generate(ids, past_key_values=reader.cache(memory))`."""
        cache = DynamicCache()
        if memory is None:
            return cache
        block = decoder_layers(self.model)[self.layer]
        norm, attention, k_proj, v_proj = projections(block)
        dtype = self.model.get_input_embeddings().weight.dtype
        r = norm(memory.state.to(dtype)[:, None])  # [B, 1, D]
        shape = (len(r), 1, -1, attention.head_dim)
        key, value = (project(r).view(shape).transpose(1, 2) for project in (k_proj, v_proj))
        if getattr(attention, "k_norm", None) is not None:
            key = attention.k_norm(key)
        if getattr(attention, "v_norm", None) is not None:
            value = attention.v_norm(value)
        plain = [DynamicLayer() for _ in decoder_layers(self.model)]
        plain[self.layer] = MemoryLayer(key, value, memory.there)
        cache.layers = plain  # type: ignore[assignment]
        return cache

    def _remember(self, memory: WindowMemory | None, states: Tensor, real: Tensor) -> WindowMemory:
        weight = real.to(next(self.update.parameters()).dtype)[..., None]
        states = states.to(weight)
        mean = (states * weight).sum(1) / weight.sum(1).clamp_min(1)
        if memory is None:
            none = torch.zeros_like(real[:, 0])
            memory = WindowMemory(torch.zeros_like(mean), none)
        seen = torch.cat([mean, memory.state], dim=-1) if self.previous else mean
        any_token = real.any(1)
        state = torch.where(any_token[:, None], self.update(seen), memory.state)
        return WindowMemory(state, memory.there | any_token)

    @staticmethod
    def _loss(logits: Tensor, labels: Tensor, attention: Tensor) -> Tensor:
        """Mean over the labelled tokens that have one before them in the row."""
        counts = attention[:, 1:] & attention[:, :-1] & (labels[:, 1:] != -100)
        if not bool(counts.any()):
            return logits.sum() * 0.0
        return cross_entropy(logits[:, :-1][counts].float(), labels[:, 1:][counts])


class MemoryLayer(ObservedLayer):
    """A cache layer with one more key and value, which every query of a row may see that has it.

    Args:
        key: [B, Hkv, 1, D].
        value: [B, Hkv, 1, D].
        there: bool [B].
    """

    def __init__(self, key: Tensor, value: Tensor, there: Tensor):
        super().__init__()
        self.key, self.value, self.there = key, value, there
        self.real: Tensor | None = None  # bool [B, past tokens]

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, new_tokens: BlockOfQueries, **options: Any
    ) -> Tensor:
        B, q = query.shape[0], query.shape[2]
        past = self.there[:, None] if self.real is None else self.real

        def visible(start: int, stop: int) -> Tensor:
            new = new_tokens(start, stop)[:, :1].expand(B, -1, -1, -1)
            return torch.cat([past[:, None, None].expand(-1, 1, stop - start, -1), new], dim=-1)

        keys = torch.cat([self.key.to(key), key], dim=2)
        values = torch.cat([self.value.to(value), value], dim=2)
        output, _ = attend_in_chunks(query, keys, values, visible, **options)
        # the last query sees every token of the step but padding
        last = new_tokens(q - 1, q)[:, 0, 0].expand(B, -1)
        self.real = torch.cat([past, last], dim=1)
        return output


def decoder_layers(model: Any) -> Any:
    """The blocks of a causal model, also inside an adapter."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    layers = getattr(inner.get_decoder(), "layers", None)
    if layers is None:
        raise ModelError(
            f"{type(inner).__name__} has no list of decoder layers to insert into; "
            "recurrence knows the models that are built like Llama (Qwen, Gemma, SmolLM, Mistral)"
        )
    return layers


def projections(block: Any) -> tuple[Any, Any, Any, Any]:
    """A block's input norm, its attention, and that one's K and V projections."""
    attention = getattr(block, "self_attn", None)
    needed = [getattr(attention, name, None) for name in ("k_proj", "v_proj", "head_dim")]
    norm = getattr(block, "input_layernorm", None)
    if norm is None or any(part is None for part in needed):
        raise ModelError(
            f"{type(block).__name__} has no input_layernorm, self_attn.k_proj and v_proj; "
            "recurrence knows the models that are built like Llama (Qwen, Gemma, SmolLM, Mistral)"
        )
    return norm, attention, needed[0], needed[1]
