"""Token-sparse attention: in chosen layers, each head reads a prompt only among tokens it selects.

For a prompt of L tokens and a window of its last W, per layer and head h:

    a_h(k) = 1/W sum over the W last queries t of softmax_j(q_t . k_j * scaling)(k),  k < L - W
    a_h    <- average pooling of a_h over `pool` columns (zeros beyond the ends)
    g      = mean_h a_h;  C = cumulative sum of g / (sum g + 1e-8), smallest first
    s      = #{j : C_j < tau};  s = 0: this layer stays dense.  M = max(min_tokens, L - W - (s + 1))
    I_h    = the M columns with the largest a_h, and the W of the window, in the order of the text
    Y[I_h] = causal softmax attention among I_h;  Y = 0 elsewhere: there this head adds nothing

so s + 1 is the smallest number of columns that carry a share tau of the attention. Nothing is
evicted: the cache keeps every key, the next layer and the other heads choose anew, and decoding is
dense. I_h is sorted, so the causal mask of the compressed axis is that of the text, and the fast
causal kernel runs on it unchanged.

Source: "Token Sparse Attention: Efficient Long-Context Inference with Interleaved Token Selection"
(arXiv 2602.03216). Ours: batches, with a budget for each row, and padding on either side.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool1d, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from tokenry.core.checks import within
from tokenry.core.errors import InputError, ModelError, ShapeError
from tokenry.model.attention.columns import compress, scatter
from tokenry.model.attention.interface import observed_attention, switching_attention
from tokenry.model.attention.layers import CHANGES_SCORES, attention_layers, is_sliding
from tokenry.model.attention.masks import DeferredMask, causal_and_padding, deferred_mask
from tokenry.model.attention.observed_layer import MARK
from tokenry.model.attention.prefill_cost import PrefillCost

IMPLEMENTATION = "tokenry_token_sparse"
ROWS = 16  # of the window's queries scored at a time: what a processor's own cache holds


def window_saliency(
    query: Tensor,
    key: Tensor,
    *,
    window: int = 128,
    pool: int = 7,
    scaling: float | None = None,
    padding: Tensor | None = None,
) -> Tensor:
    """a_h of every column before the window, [B, H, L - window] float32; its sum is at most 1.

    query [B, H, q, D] (its last `window` are read) and key [B, Hkv, L, D], rotated.

    Args:
        padding: [B], how many columns on the left are none; they get 0.
    """
    B, H, _, D = query.shape
    heads, L = key.shape[1:3]
    if not 0 < window < L:
        raise ShapeError(f"a window of {window} leaves no column of {L} to score")
    if pool < 1 or pool % 2 == 0:
        raise InputError(f"pool={pool} is not an odd number of columns")
    factor: float = D**-0.5 if scaling is None else scaling
    last = query[:, :, -window:].float() * factor
    keys = key.float().mT
    columns = torch.arange(L, device=key.device)
    future = columns > columns[-window:, None]  # [window, L]
    lowest = torch.finfo(keys.dtype).min  # not -inf: padding sees nothing, and must not be NaN
    received = keys.new_zeros(B, H, L - window)
    for start in range(0, window, ROWS):
        some = last[:, :, start : start + ROWS]
        logits = (some.reshape(B, heads, -1, D) @ keys).view(B, H, -1, L)
        logits[..., -window:].masked_fill_(future[start : start + ROWS, -window:], lowest)
        if padding is not None:
            logits.masked_fill_((columns < padding[:, None])[:, None, None], lowest)
        received += logits.softmax(-1)[..., : L - window].sum(2)
    received /= window
    # counts the zeros outside; a prefix shorter than the kernel is no special case
    pooled = avg_pool1d(received, pool, stride=1, padding=pool // 2)
    if padding is not None:
        pooled = pooled.masked_fill((columns[: L - window] < padding[:, None])[:, None], 0)
    return pooled


def coverage_budget(
    scores: Tensor, tau: float, *, min_tokens: int = 1024, padding: Tensor | None = None
) -> Tensor:
    """M for each row, [B]: how many columns to keep by `scores` [B, N] >= 0; N when s = 0.

    Args:
        padding: [B], the columns on the left that count neither as kept nor as dropped.
    """
    length = torch.full_like(scores[:, 0], scores.shape[1], dtype=torch.long)
    none = torch.zeros_like(length) if padding is None else padding
    # float64: thousands of small terms; the order of the sum must not decide
    mass = scores.double()
    mass = (mass / (mass.sum(-1, keepdim=True) + 1e-8)).sort(-1).values.cumsum(-1)
    small = (mass < tau).sum(-1) - none.clamp(max=scores.shape[1])  # s; padding has 0, comes first
    length = (length - none).clamp_min(0)
    keep = torch.where(small > 0, length - small - 1, length)
    return torch.minimum(keep.clamp_min(min_tokens), length)


def select_indices(
    scores: Tensor, keep: Tensor | int, window: int, *, padding: Tensor | None = None
) -> Tensor:
    """I_h, [B, H, max(keep) + window], increasing: the `keep` best columns and the window's.

    scores [B, H, N] >= 0.

    A row that keeps fewer than the longest is filled up with L = N + window, one beyond the last
    column.

    Args:
        keep: one number, or one for each row [B].
    """
    B, H, N = scores.shape
    rows = torch.as_tensor(keep, device=scores.device).expand(B)
    most = int(rows.max())
    if not 0 <= int(rows.min()) <= most <= N:
        raise InputError(f"cannot keep {int(rows.min())} to {most} of {N} columns")
    if padding is not None:
        columns = torch.arange(N, device=scores.device)
        scores = scores.masked_fill((columns < padding[:, None])[:, None], -1)
    best = scores.topk(most, dim=-1).indices  # best first
    unused = torch.arange(most, device=scores.device) >= rows[:, None]  # [B, most]
    best = best.masked_fill(unused[:, None], N + window)
    always = torch.arange(N, N + window, device=scores.device).expand(B, H, window)
    if padding is not None:  # a text shorter than the window
        always = always.masked_fill(always < padding[:, None, None], N + window)
    return torch.cat([best, always], dim=-1).sort(-1).values


@dataclass(frozen=True)
class TokenSparse:
    """`with TokenSparse(tau=0.05).on(model): model.generate(**inputs)`.

    Only a pass that reads a whole prompt into an empty cache is sparse. Sliding-window layers stay
    dense; asking for one is an InputError.

    Args:
        layers: which ones are sparse; None is the second half of those with full attention. Better:
            `drift.low_drift_layers(model, ids)` of a text.
        tau: the share of the window's attention that the dropped columns carry, 0 <= tau < 1
            (paper: 0.005); 0 is dense.
        min_tokens: columns kept at least, besides the window; prompts of up to min_tokens + window
            tokens are dense.
        window: W, the last queries that are asked.
        pool: odd, columns averaged.
    """

    layers: tuple[int, ...] | None = None
    tau: float = 0.005
    min_tokens: int = 1024
    window: int = 128
    pool: int = 7

    def __post_init__(self) -> None:
        within(self, "[0, 1)", "tau")
        within(self, "[0, inf)", "min_tokens", integer=True)
        within(self, "[1, inf)", "window", "pool", integer=True)
        if self.pool % 2 == 0:
            raise InputError(f"pool={self.pool} is not an odd number of columns")

    def attach(self, model: Any) -> SparsePrefill:
        """Switch `model` to token-sparse prefill until `detach`. Other hyper-parameters: attach
        again."""
        modules = attention_layers(model)
        layers = self.sparse_layers(modules)
        text = model.config.get_text_config(decoder=True)
        known = next((_attached[m] for m in modules.values() if m in _attached), None)
        previous = text._attn_implementation if known is None else known.previous
        first = min((number for number in modules if not is_sliding(modules[number])), default=None)
        if first is None:
            raise ModelError(f"{type(model).__name__} has no layer with full attention")
        with switching_attention(model, IMPLEMENTATION):
            prefill = SparsePrefill(self, model, layers, previous, first)
        for module in modules.values():
            _attached[module] = prefill
        return prefill

    @contextmanager
    def on(self, model: Any) -> Iterator[SparsePrefill]:
        """Attached inside the `with`, detached after it."""
        prefill = self.attach(model)
        try:
            yield prefill
        finally:
            prefill.detach()

    def sparse_layers(self, modules: dict[int, nn.Module]) -> frozenset[int]:
        """The layers that this policy makes sparse in a model with these attention modules."""
        full = [number for number, module in modules.items() if not is_sliding(module)]
        if self.layers is None:
            return frozenset(number for number in full if number >= len(modules) // 2)
        for number in self.layers:
            if number not in modules:
                raise InputError(f"there is no layer {number}: the model has {len(modules)}")
            if number not in full:
                raise InputError(
                    f"layer {number} has a sliding window, which is sparse already; "
                    f"the layers with full attention are {full}"
                )
        return frozenset(self.layers)

    @torch.no_grad()
    def select(
        self, query: Tensor, key: Tensor, scaling: float | None, real: Tensor | None = None
    ) -> Tensor | None:
        """The columns that each head reads of a prompt, [B, H, K]; None: dense in every row.

        Padding is never selected; unused slots have L.

        Args:
            real: bool [B, L], None without padding.
        """
        L = key.shape[2]
        padding = order = None
        if real is not None:
            padding = L - real.sum(-1)
            # as if padded on the left: padding first, tokens in their order
            order = real.long().argsort(dim=-1, stable=True)[:, None]  # [B, 1, L]
            query = compress(query, order[..., -self.window :].expand(-1, query.shape[1], -1))
            key = compress(key, order.expand(-1, key.shape[1], -1))
        scores = window_saliency(
            query,
            key,
            window=self.window,
            pool=self.pool,
            scaling=scaling,
            padding=padding,
        )
        keep = coverage_budget(
            scores.mean(1), self.tau, min_tokens=self.min_tokens, padding=padding
        )
        prefix = L - self.window - (0 if padding is None else padding)
        if bool((keep == torch.as_tensor(prefix).clamp_min(0)).all()):
            return None
        index = select_indices(scores, keep, self.window, padding=padding)
        if order is None:
            return index
        order = torch.cat([order, torch.full_like(order[..., :1], L)], dim=-1)
        return order.expand(-1, index.shape[1], -1).gather(2, index)


@dataclass
class SparsePrefill:
    """A model under a TokenSparse policy, and what attention cost in its last prompt."""

    policy: TokenSparse
    model: Any
    layers: frozenset[int]
    previous: str
    first: int
    cost: PrefillCost = field(default_factory=PrefillCost)

    def detach(self) -> None:
        """Give the model back the attention that it had."""
        for module in attention_layers(self.model).values():
            _attached.pop(module, None)
        self.model.set_attn_implementation(self.previous)

    def count(self, module: Any, query: Tensor, length: Tensor, attended: Tensor | None) -> None:
        """Add a layer to the cost of the prompt, which the first layer begins."""
        if module.layer_idx == self.first:
            self.cost.clear()
        self.cost.count(module.layer_idx, query, length, attended, self.policy.window)


_attached: WeakKeyDictionary[Any, SparsePrefill] = WeakKeyDictionary()


def token_sparse_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: DeferredMask | Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, None]:
    """The attention function under the name IMPLEMENTATION."""
    prefill = _attached.get(module)
    if prefill is None:
        raise ModelError(
            f"layer {module.layer_idx} of this model is switched to token-sparse attention without "
            "a policy (a copy of a model that had one?); use TokenSparse(...).attach(model)"
        )

    def dense() -> tuple[Tensor, None]:
        return observed_attention(
            module, query, key, value, attention_mask, scaling, dropout, **options
        )

    B, _, L, _ = query.shape
    whole_prompt = 1 < L == key.shape[2] and getattr(key, MARK, None) is None
    if is_sliding(module) or not whole_prompt:
        return dense()
    causal, real = causal_and_padding(attention_mask, L)
    length = torch.full((B,), L, device=query.device) if real is None else real.sum(-1)
    policy = prefill.policy
    if (
        not causal
        or module.layer_idx not in prefill.layers
        or policy.tau == 0
        or not bool((length > policy.min_tokens + policy.window).any())
    ):
        prefill.count(module, query, length, None)
        return dense()
    if changed := [name for name in CHANGES_SCORES if options.get(name) is not None]:
        raise ModelError(
            f"layer {module.layer_idx} has attention with {' and '.join(changed)}, of which "
            "token-sparse attention knows nothing; leave the layer out of `layers`"
        )
    index = policy.select(query, key, scaling, real)
    if index is None:
        prefill.count(module, query, length, None)
        return dense()
    prefill.count(module, query, length, (index[:, 0] < L).sum(-1))
    compressed = scaled_dot_product_attention(
        compress(query, index),
        compress(key, index),
        compress(value, index),
        dropout_p=dropout,
        is_causal=True,
        scale=scaling,
    )
    return scatter(compressed, index, L).transpose(1, 2).contiguous(), None


AttentionInterface.register(IMPLEMENTATION, token_sparse_attention)
AttentionMaskInterface.register(IMPLEMENTATION, deferred_mask)
