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

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
ROWS = 256  # queries attended at a time where a mask must be formed
UNSUPPORTED = ("position_bias", "s_aux")

BlockOfQueries = Callable[[int, int], Tensor]
"""(start, stop) -> bool [B or 1, heads or 1, stop - start, keys]: the keys those queries see."""


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

    implementation: None leaves the function as it is; what the block itself switches is undone.
    """
    previous = model.config.get_text_config(decoder=True)._attn_implementation
    if implementation is not None:
        model.set_attn_implementation(implementation)
    try:
        yield
    finally:
        model.set_attn_implementation(previous)


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
        logits = capped(logits, softcap)
        seen = visible(start, stop).unsqueeze(2)
        probability = logits.masked_fill_(~seen, torch.finfo(torch.float32).min).softmax(-1)
        sees = seen.any(-1)  # [B, Hkv or 1, 1, rows]; a query that sees nothing is uniform so far
        with torch.no_grad():
            weight = sees if counted is None else sees & counted(start, stop)[:, None, None]
            weight = weight.float().expand(probability.shape[:-1]).flatten(2)
            received += torch.einsum("bhr,bhrk->bhk", weight, probability.flatten(2, 3))
        probability = drop(probability, dropout).to(value.dtype)
        outputs.append(probability @ value.unsqueeze(2) * sees.unsqueeze(-1))
    output = torch.cat(outputs, dim=3).reshape(B, H, q, value.shape[-1])
    return output.transpose(1, 2).contiguous(), received


def capped(logits: Tensor, softcap: float | None) -> Tensor:
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap


def attend_densely(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: "StepMask",
    *,
    scaling: float,
    softcap: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attention to every key that the mask allows, [B, q, H, D]; the last q keys are the queries'.

    A long prompt is read ROWS queries at a time, each block against the keys up to its own.
    """
    options = {"scaling": scaling, "softcap": softcap, "dropout": dropout}
    q, past = query.shape[2], key.shape[2] - query.shape[2]
    if mask.causal and not past and softcap is None:
        return attend_to(query, key, value, None, is_causal=q > 1, **options)
    blocks = []
    for start in range(0, q, ROWS):
        stop = min(start + ROWS, q)
        end = past + (stop if mask.causal else q)  # nobody here sees later tokens
        blocks.append(
            attend_to(
                query[:, :, start:stop],
                key[:, :, :end],
                value[:, :, :end],
                visible(mask, start, stop, past, end),
                **options,
            )
        )
    return torch.cat(blocks, dim=1) if len(blocks) > 1 else blocks[0]


def visible(mask: "StepMask", start: int, stop: int, past: int, end: int) -> Tensor | None:
    """bool [B or 1, 1, stop - start, end]: the keys of these queries; None: all of them."""
    before = mask.past(start, stop)
    if before is None and mask.causal and stop - start == 1 and end == past + stop:
        return None
    new = mask(start, stop)[..., : end - past]
    if before is None:
        before = new.new_ones(1, 1, past)
    return torch.cat([before[:, None].expand(len(new), -1, stop - start, -1), new], dim=-1)


def attend_to(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visible: Tensor | None,
    *,
    scaling: float,
    softcap: float | None = None,
    dropout: float = 0.0,
    is_causal: bool = False,
) -> Tensor:
    """SDPA whose key heads are shared by groups of query heads: [B, q, H, D].

    visible: bool [B or 1, 1, q, k]; None: all keys, or those up to the query with is_causal. One
    query per head is packed as a group's queries on the one key head: a key is then read once,
    where a repeated head would be read for each of them.
    """
    B, H, q, D = query.shape
    heads = key.shape[1]
    if softcap is not None:
        block = visible if visible is not None else query.new_ones(1, 1, q, key.shape[2]).bool()
        output, _ = attend_in_chunks(
            query,
            key,
            value,
            lambda start, stop: block[:, :, start:stop],
            scaling=scaling,
            softcap=softcap,
            dropout=dropout,
        )
        return output
    grouped = query.reshape(B, heads, H // heads, D) if q == 1 else query
    output = torch.nn.functional.scaled_dot_product_attention(
        grouped,
        key,
        value,
        attn_mask=visible,
        dropout_p=dropout,
        scale=scaling,
        is_causal=is_causal,
        enable_gqa=q > 1 and heads != H,
    )
    return output.reshape(B, H, q, -1).transpose(1, 2).contiguous()


class StepMask(ABC):
    """What the queries of one forward may see: this step's new tokens, and what came before."""

    queries: int

    @property
    @abstractmethod
    def causal(self) -> bool:
        """Whether the new tokens see each other as the plain triangle says."""

    @abstractmethod
    def __call__(self, start: int, stop: int) -> Tensor:
        """bool [B or 1, 1, stop - start, q]: the new tokens that the queries start..stop see."""

    @abstractmethod
    def past(self, start: int, stop: int) -> Tensor | None:
        """bool [B or 1, 1 or stop - start, P]: the P tokens of former steps; None: all seen."""

    @cached_property
    def real(self) -> Tensor | None:
        """bool [B or 1, q]: the new tokens that see themselves, as padding does not; None: all."""
        if self.causal:
            return None
        blocks = []
        for start in range(0, self.queries, ROWS):
            block = self(start, min(start + ROWS, self.queries))[:, 0]
            blocks.append(block.diagonal(start, dim1=-2, dim2=-1))
        return torch.cat(blocks, dim=-1)


@dataclass
class DeferredMask(StepMask):
    """The arguments of a causal mask, to be evaluated whole or a block of new tokens at a time.

    One serves all layers of a forward: what it works out for the first is kept for the others.
    """

    arguments: dict[str, Any]
    latest: tuple[int, int, Tensor] | None = None

    def __post_init__(self) -> None:
        self.queries = self.arguments["q_length"]

    @cached_property
    def whole(self) -> Tensor | None:
        """[B, 1, q, k], or None where SDPA's own causal flag says the same."""
        return sdpa_mask(**self.arguments)

    @property
    def table(self) -> Tensor:
        """The same, in any case as a table."""
        found = sdpa_mask(**{**self.arguments, "allow_is_causal_skip": False})
        assert found is not None
        return found

    @cached_property
    def causal(self) -> bool:
        return self._block(0, self.queries) is None

    def __call__(self, start: int, stop: int) -> Tensor:
        if self.latest is None or self.latest[:2] != (start, stop):
            mask = self._block(start, stop, allow_is_causal_skip=False)
            assert mask is not None
            self.latest = (start, stop, mask)
        return self.latest[2]

    def past(self, start: int, stop: int) -> Tensor | None:
        return self._past

    @cached_property
    def _past(self) -> Tensor | None:
        padding = self.arguments["attention_mask"]
        padding = None if padding is None else padding[:, : int(self.arguments["q_offset"])].bool()
        return None if padding is None or bool(padding.all()) else padding[:, None]

    def _block(self, start: int, stop: int, **options: Any) -> Tensor | None:
        offset = self.arguments["q_offset"]
        here = {
            "q_length": stop - start,
            "q_offset": offset + start,
            "kv_length": self.queries,
            "kv_offset": offset,
        }
        return sdpa_mask(**{**self.arguments, **here, **options})


@dataclass
class GivenMask(StepMask):
    """A four-dimensional mask of the caller's, boolean or additive; None: a causal one."""

    table: Tensor | None
    query: Tensor

    def __post_init__(self) -> None:
        self.queries = self.query.shape[2]

    @cached_property
    def causal(self) -> bool:
        return self.table is None

    def __call__(self, start: int, stop: int) -> Tensor:
        return self._new[:, :, start:stop]

    def past(self, start: int, stop: int) -> Tensor | None:
        return None if self.table is None else self._past[:, start:stop]

    @cached_property
    def _new(self) -> Tensor:
        q = self.queries
        if self.table is None:
            return torch.ones(1, 1, q, q, dtype=torch.bool, device=self.query.device).tril()
        return allowed(self.table[..., -q:])

    @cached_property
    def _past(self) -> Tensor:
        assert self.table is not None
        return allowed(self.table[:, 0, :, : -self.queries])


def allowed(mask: Tensor) -> Tensor:
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


def deferred_mask(**arguments: Any) -> DeferredMask:
    """What the mask interface calls once per forward and kind of layer."""
    return DeferredMask(arguments)


class ObservedLayer(DynamicLayer):
    """A cache layer that does its own attention, and may hold fewer keys than it saw.

    `seen` counts the tokens that went through the layer; it is what transformers computes positions
    from. The number of keys held may be smaller.
    """

    is_croppable = False
    rows: tuple[str, ...] = ("keys", "values")  # states with a batch dimension, None at first

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0
        self.waiting = False

    @abstractmethod
    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, new_tokens: StepMask, **options: Any
    ) -> Tensor:
        """[B, q, H, D] for this step's queries; key and value are those held, and end with this
        step's q tokens. options: scaling, softcap and dropout."""

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
        keys, values = self.store(key_states, value_states)
        marked = keys.view_as(keys)  # a view, or the layer and its keys would hold each other alive
        setattr(marked, MARK, self)
        return marked, values

    def store(self, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
        """Add the new tokens' keys and values and return all that are held."""
        return super().update(key_states, value_states)

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

    def keep_columns(self, length: int, index: Tensor) -> None:
        """Keep the first `length` tokens and, after them, those of `index` [B, n], relative to
        `length`: the path that a tree of guesses is cut to."""
        self.crop(length + index.shape[1] - self.seen)

    def copy(self) -> "ObservedLayer":
        """An independent layer in the same state."""
        return copy.copy(self)  # enough where a step replaces tensors and never writes into them

    def reset(self) -> None:
        super().reset()
        self.seen, self.waiting = 0, False

    def each_row(self, change: Callable[[Tensor], Tensor]) -> None:
        """Apply `change` to every state with a batch dimension."""
        for name in self.rows:
            if (state := getattr(self, name)) is not None:
                setattr(self, name, change(state))

    def reorder_cache(self, beam_idx: Any) -> None:
        self.each_row(lambda state: state.index_select(0, beam_idx.to(state.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.each_row(lambda state: state.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        self.each_row(lambda state: state[indices])


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
