"""Attention that shows its probabilities to the cache: the one place that knows how.

A cache policy that ranks keys by the attention they receive must see that attention, and the fast
kernels never form it. Here an attention function is registered through transformers' public
attention interface, and a cache layer that wants to attend for itself marks the keys it hands out:

    cache.update(...)                 ->  keys that carry their ObservedLayer
    observed_attention(module, ...)   ->  that layer's attend(...), or SDPA where there is none

so a model under `observe_attention` behaves as before with every other cache, and no module is
hooked or patched. The causal mask is deferred (`DeferredMask`): it is evaluated for a block of
queries at a time, so that a long prompt never needs a [queries, keys] table.

This module confines what the library takes from transformers' undocumented parts on this subject:
`masking_utils.sdpa_mask` and `integrations.sdpa_attention.sdpa_attention_forward`.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import dropout as drop
from transformers import AttentionInterface, AttentionMaskInterface, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from tokenry.core.errors import ModelError

IMPLEMENTATION = "tokenry_observed"
MARK = "tokenry_layer"
CHUNK_ELEMENTS = 2**23  # probabilities formed at a time: 32 MB of float32
UNSUPPORTED = ("position_bias", "s_aux")

BlockOfQueries = Callable[[int, int], Tensor]
"""(start, stop) -> bool [B or 1, heads or 1, stop - start, keys]: the keys those queries see."""


def observe_attention(model: Any) -> str:
    """Switch `model` to the observed attention and return the name of the one it had.

    Outputs with other caches stay those of SDPA. Undo with `model.set_attn_implementation(name)`.
    """
    previous = model.config.get_text_config(decoder=True)._attn_implementation
    if previous != IMPLEMENTATION:
        model.set_attn_implementation(IMPLEMENTATION)
        if model.config.get_text_config(decoder=True)._attn_implementation != IMPLEMENTATION:
            raise ModelError(
                f"{type(model).__name__} cannot change its attention function, so no cache policy "
                "can see its attention; use a model that follows transformers' attention interface"
            )
    return previous


def attend_in_chunks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visible: BlockOfQueries,
    *,
    scaling: float,
    softcap: float | None = None,
    dropout: float = 0.0,
    counted: Callable[[int, int], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Softmax attention that also says how much of it every key received.

    query [B, H, q, D]; key, value [B, Hkv, k, D]; H / Hkv query heads share a key head.
    Returns output [B, q, H, D] and received [B, Hkv, k], float32: the probabilities summed over the
    queries for which counted(start, stop) [B, rows] holds and over the query heads of the group. A
    query that sees nothing gets zeros. Memory: CHUNK_ELEMENTS probabilities at a time.
    """
    B, H, q, D = query.shape
    heads, k = key.shape[1], key.shape[2]
    grouped = query.view(B, heads, H // heads, q, D)
    key = key.float().transpose(-1, -2).unsqueeze(2)  # [B, Hkv, 1, D, k]
    received = key.new_zeros(B, heads, k)
    outputs = []
    rows = max(1, CHUNK_ELEMENTS // (B * H * k))
    for start in range(0, q, rows):
        stop = min(start + rows, q)
        logits = grouped[:, :, :, start:stop].float() @ key * scaling  # [B, Hkv, G, rows, k]
        if softcap is not None:
            logits = torch.tanh(logits / softcap) * softcap
        seen = visible(start, stop).unsqueeze(2)
        logits = logits.masked_fill(~seen, torch.finfo(torch.float32).min)
        # a row that sees nothing is uniform before the product, and zero after it
        probability = logits.softmax(-1) * seen
        with torch.no_grad():
            weight = 1.0 if counted is None else counted(start, stop)[:, None, None, :, None]
            received += (probability * weight).sum((2, 3))
        probability = drop(probability, dropout).to(value.dtype)
        outputs.append(probability @ value.unsqueeze(2))
    output = torch.cat(outputs, dim=3).reshape(B, H, q, value.shape[-1])
    return output.transpose(1, 2).contiguous(), received


@dataclass
class DeferredMask:
    """The arguments of a causal mask, to be evaluated whole or a block of new tokens at a time."""

    arguments: dict[str, Any]

    @cached_property
    def whole(self) -> Tensor | None:
        """[B, 1, q, k], or None where SDPA's own causal flag says the same."""
        return sdpa_mask(**self.arguments)

    def new_tokens(self, start: int, stop: int) -> Tensor:
        """bool [B, 1, stop - start, q]: this step's tokens that its queries start..stop may see."""
        offset = self.arguments["q_offset"]
        here = {
            "q_length": stop - start,
            "q_offset": offset + start,
            "kv_length": self.arguments["q_length"],
            "kv_offset": offset,
            "allow_is_causal_skip": False,
        }
        mask = sdpa_mask(**{**self.arguments, **here})
        assert mask is not None
        return mask


def deferred_mask(**arguments: Any) -> DeferredMask:
    """What the mask interface calls once per forward and kind of layer."""
    return DeferredMask(arguments)


class ObservedLayer(DynamicLayer):
    """A cache layer that does its own attention.

    `seen` counts the tokens that went through the layer; it is what transformers computes positions
    from. The number of keys held may be smaller.
    """

    is_croppable = False

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0
        self.waiting = False

    @abstractmethod
    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, new_tokens: BlockOfQueries, **options: Any
    ) -> Tensor:
        """[B, q, H, D] for this step's queries; key and value end with this step's q tokens."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if self.waiting:
            raise ModelError(
                "this cache was never shown the model's attention; make it with "
                "policy.cache(model), which also switches that model's attention function"
            )
        self.waiting = True
        self.seen += key_states.shape[-2]
        keys, values = super().update(key_states, value_states)
        marked = keys.view_as(keys)  # a view, or the layer and its keys would hold each other alive
        setattr(marked, MARK, self)
        return marked, values

    def get_seq_length(self) -> int:
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        held = 0 if self.keys is None else self.keys.shape[-2]
        return held + query_length, self.seen - held

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove != 0:
            raise ModelError(
                "a cache that has evicted keys cannot forget its last tokens again; "
                "use a full cache for assisted or tree decoding"
            )

    def reset(self) -> None:
        super().reset()
        self.seen, self.waiting = 0, False


def observed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: DeferredMask | Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The attention function under the name IMPLEMENTATION."""
    layer: ObservedLayer | None = getattr(key, MARK, None)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if layer is None:
        whole = attention_mask.whole if isinstance(attention_mask, DeferredMask) else attention_mask
        options |= {} if softcap is None else {"softcap": softcap}
        return sdpa_attention_forward(
            module, query, key, value, whole, dropout=dropout, scaling=scaling, **options
        )
    if refused := [name for name in UNSUPPORTED if options.get(name) is not None]:
        raise ModelError(f"cache policies do not know attention with {' and '.join(refused)}")
    q = query.shape[-2]
    output = layer.attend(
        query,
        key,
        value,
        _new_tokens(attention_mask, q, query),
        scaling=scaling,
        softcap=softcap,
        dropout=dropout,
    )
    layer.waiting = False
    return output, None


def _new_tokens(mask: DeferredMask | Tensor | None, q: int, query: Tensor) -> BlockOfQueries:
    if isinstance(mask, DeferredMask):
        return mask.new_tokens
    if mask is None:
        table = torch.ones(1, 1, q, q, dtype=torch.bool, device=query.device).tril()
    else:  # a four-dimensional mask of the caller's, boolean or additive
        table = mask[..., -q:]
        table = table if table.dtype == torch.bool else table > torch.finfo(table.dtype).min / 2
    return lambda start, stop: table[:, :, start:stop]


AttentionInterface.register(IMPLEMENTATION, observed_attention)
AttentionMaskInterface.register(IMPLEMENTATION, deferred_mask)
