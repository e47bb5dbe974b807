"""Attention that shows its probabilities to the cache: the one place that knows how.

A cache policy that ranks keys by the attention they receive must see that attention, and the fast
kernels never form it. Here an attention function is registered through transformers' public
attention interface, and a cache layer that wants to attend for itself marks the keys it hands out:

    cache.update(...)                 ->  keys that carry their ObservedLayer
    observed_attention(module, ...)   ->  that layer's attend(...), or SDPA where there is none

so a model under `observe_attention` behaves as before with every other cache, and no module is
hooked or patched. The causal mask is deferred (`DeferredMask`): it is evaluated for a block of
queries at a time, so that a long prompt never needs a [queries, keys] table.

What the library takes from transformers' undocumented parts on this subject is confined to
`attention`: here `integrations.sdpa_attention.sdpa_attention_forward`, in `masks` `sdpa_mask`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tokenry.core.errors import ModelError
from tokenry.model.attention.dense import attend_to
from tokenry.model.attention.masks import DeferredMask, GivenMask, allowed, deferred_mask
from tokenry.model.attention.observed_layer import MARK, ObservedLayer

IMPLEMENTATION = "tokenry_observed"
UNSUPPORTED = ("position_bias", "s_aux")


def observe_attention(model: Any) -> str:
    """Switch `model` to the observed attention and return the name of the one it had.

    Outputs with other caches stay those of SDPA. Undo with `model.set_attn_implementation(name)`.
    Raises ModelError, and leaves the model as it was, where its attention cannot be observed.
    """
    with switching_attention(model, IMPLEMENTATION) as previous:
        return previous


@contextmanager
def switching_attention(model: Any, implementation: str) -> Iterator[str]:
    """Switch the model's attention function, for good if the block ends well; where anything fails
    the model has the former one again. Gives that one's name."""
    text = model.config.get_text_config(decoder=True)
    previous = text._attn_implementation
    if any(hasattr(module, "sinks") for module in model.modules()):
        raise ModelError(
            f"{type(model).__name__} has attention sinks beside its keys, of which "
            f"{implementation} knows nothing: leave its attention as it is"
        )
    try:
        if previous != implementation:
            model.set_attn_implementation(implementation)
        if text._attn_implementation != implementation:
            raise ModelError(
                f"{type(model).__name__} cannot change its attention function: use a model that "
                "follows transformers' attention interface"
            )
        yield previous
    except BaseException:
        model.set_attn_implementation(previous)
        raise


@contextmanager
def attending_by(model: Any, implementation: str | None = None) -> Iterator[None]:
    """Another attention function within the block, and the former one after it.

    Args:
        implementation: None leaves the function as it is; what the block itself switches is undone.
    """
    previous = model.config.get_text_config(decoder=True)._attn_implementation
    if implementation is not None:
        model.set_attn_implementation(implementation)
    try:
        yield
    finally:
        model.set_attn_implementation(previous)


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
        if isinstance(attention_mask, DeferredMask):
            whole = attention_mask.whole if softcap is None else attention_mask.table
        else:
            whole = attention_mask
        if isinstance(whole, Tensor) and whole.shape[-1] > key.shape[-2]:
            whole = whole[..., -key.shape[-2] :]  # a sliding layer holds the latest columns alone
        if softcap is not None:  # SDPA has no soft cap
            if whole is None:
                whole = query.new_ones(1, 1, query.shape[2], key.shape[2]).bool()
                whole = whole.tril(key.shape[2] - query.shape[2])
            bounds = {"scaling": scaling, "softcap": softcap, "dropout": dropout}
            return attend_to(query, key, value, allowed(whole), **bounds), None
        return sdpa_attention_forward(
            module, query, key, value, whole, dropout=dropout, scaling=scaling, **options
        )
    if refused := [name for name in UNSUPPORTED if options.get(name) is not None]:
        raise ModelError(f"cache policies do not know attention with {' and '.join(refused)}")
    mask = attention_mask
    output = layer.attend(
        query,
        key,
        value,
        mask if isinstance(mask, DeferredMask) else GivenMask(mask, query),
        scaling=scaling,
        softcap=softcap,
        dropout=dropout,
    )
    layer.waiting = False
    return output, None


AttentionInterface.register(IMPLEMENTATION, observed_attention)
AttentionMaskInterface.register(IMPLEMENTATION, deferred_mask)
