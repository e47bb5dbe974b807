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
from torch.nn.functional import pad
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, DynamicLayer

from tokenry.core.errors import InputError, ModelError, ShapeError
from tokenry.model.attention import MARK, ObservedLayer, deferred_mask, observed_attention
from tokenry.model.sparse_attention import (
    CHANGES_SCORES,
    attention_layers,
    causal_and_padding,
    compress,
    is_sliding,
)

IMPLEMENTATION = "tokenry_still"
LINEAR_FLOOR = 1e-6  # in the denominator of y


def self_saliency(
    query: Tensor,
    key: Tensor,
    *,
    window: int = 64,
    scaling: float | None = None,
    eps: float = 1e-8,
) -> Tensor:
    """score_t of every token, [B, H, L] float32; query and key [B, H, L, D], one key per query
    head. Padding may only follow the text."""
    L = query.shape[2]
    own, before = triangle(window, query.device)
    logits = local_logits(query, key, window, scaling)  # [B, H, C, l, 2l]
    logits = logits.masked_fill(~torch.cat([before, own], dim=-1), -torch.inf)
    logits[:, :, 0, :, :window] = -torch.inf
    score = saliency(logits, torch.arange(window, device=query.device) + window, eps)
    score[:, :, 0, 0] = torch.inf
    return score.flatten(2)[..., :L]


def saliency(logits: Tensor, itself: Tensor, eps: float = 1e-8) -> Tensor:
    """The divergence from attention without itself: logits [..., n, K], itself: [n] or [..., n],
    the column of each query's own token."""
    column = itself.expand(logits.shape[:-1]).unsqueeze(-1)
    probability = logits.softmax(-1)
    without = logits.scatter(-1, column, -torch.inf).softmax(-1)
    return (probability * ((probability + eps).log() - (without + eps).log())).sum(-1)


def route(scores: Tensor, chunk: int, topk: int) -> Tensor:
    """Which tokens are salient, bool like scores [B, H, L]: the best `topk` of each chunk."""
    chunks = into_chunks(scores.unsqueeze(-1), chunk, -torch.inf).squeeze(-1)
    best = chunks.topk(topk, dim=-1).indices
    salient = torch.zeros_like(chunks, dtype=torch.bool).scatter_(-1, best, True)
    return salient.flatten(2)[..., : scores.shape[-1]]


def hybrid_chunk_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gate: Tensor,
    query_features: Tensor,
    key_features: Tensor,
    salient: Tensor,
    *,
    chunk: int = 64,
    scaling: float | None = None,
) -> Tensor:
    """y, [B, H, L, D] float32. query, key, value, gate: [B, H, L, D], one key per query head;
    features: [B, H, L, 2D]; salient: bool [B, H, L], the same number in each whole chunk."""
    L, D = query.shape[2:]
    own, _ = triangle(chunk, query.device)
    local = local_logits(query, key, chunk, scaling)
    local = local.masked_fill(~torch.cat([torch.ones_like(own), own], dim=-1), -torch.inf)
    local[:, :, 0, :, :chunk] = -torch.inf
    values = into_chunks(value.float(), chunk)  # [B, H, C, l, D]
    recent = torch.cat([pad(values[:, :, :-1], (0, 0, 0, 0, 1, 0)), values], dim=3)
    older = max(values.shape[2] - 2, 0)  # chunks that some query sees from a distance
    if not older:
        weight = (local - local.amax(-1, keepdim=True)).exp()
        exact = (weight @ recent) / (weight.sum(-1, keepdim=True) + LINEAR_FLOOR)
        return exact.flatten(2, 3)[:, :, :L]

    queries, keys = into_chunks(query.float(), chunk), into_chunks(key.float(), chunk)
    distant, kept = far_keys(salient, chunk, older)
    B, H = salient.shape[:2]
    flat = (B, H, older * kept, D)
    at = distant.unsqueeze(-1).expand(-1, -1, -1, -1, D)
    far_key = keys[:, :, :older].gather(3, at).reshape(flat)
    far_value = values[:, :, :older].gather(3, at).reshape(flat)
    factor: float = D**-0.5 if scaling is None else scaling
    far = queries[:, :, 2:] * factor @ far_key.unsqueeze(2).transpose(-1, -2)
    number = torch.arange(older, device=query.device)
    left = number.repeat_interleave(kept) <= number[:, None]  # [older, older * kept]
    far = far.masked_fill(~left[:, None], -torch.inf)
    far = pad(far, (0, 0, 0, 0, 2, 0), value=-torch.inf)  # the first two chunks see none

    top = torch.cat([local, far], dim=-1).amax(-1, keepdim=True)
    near_weight, far_weight = (local - top).exp(), (far - top).exp()
    numerator = near_weight @ recent + far_weight @ far_value.unsqueeze(2)
    denominator = near_weight.sum(-1, keepdim=True) + far_weight.sum(-1, keepdim=True)

    folded = key_features.float() * ~salient.unsqueeze(-1)
    folded = into_chunks(folded, chunk)[:, :, :older]  # [B, H, older, l, 2D]
    state = (folded.transpose(-1, -2) @ values[:, :, :older]).cumsum(2)
    mass = folded.sum(3).cumsum(2)
    features = into_chunks(query_features.float(), chunk)
    linear = pad(features[:, :, 2:] @ state, (0, 0, 0, 0, 2, 0))
    numerator = numerator + into_chunks(gate.float(), chunk) * linear
    share = pad(features[:, :, 2:] @ mass.unsqueeze(-1), (0, 0, 0, 0, 2, 0))
    return (numerator / (denominator + share + LINEAR_FLOOR)).flatten(2, 3)[:, :, :L]


def far_keys(salient: Tensor, chunk: int, older: int) -> tuple[Tensor, int]:
    """([B, H, older, kept]: the salient places in each of the first chunks, kept)."""
    chunks = into_chunks(salient.unsqueeze(-1).float(), chunk).squeeze(-1)[:, :, :older]
    kept = int(chunks[0, 0, 0].sum())
    if not bool((chunks.sum(-1) == kept).all()):
        raise ShapeError("every chunk must have the same number of salient tokens")
    return chunks.topk(kept, dim=-1).indices, kept


def into_chunks(states: Tensor, chunk: int, fill: float = 0.0) -> Tensor:
    """[B, H, L, D] as [B, H, C, chunk, D], filled up at the end."""
    missing = -states.shape[2] % chunk
    return pad(states, (0, 0, 0, missing), value=fill).unflatten(2, (-1, chunk))


def local_logits(query: Tensor, key: Tensor, chunk: int, scaling: float | None) -> Tensor:
    """[B, H, C, l, 2l] float32: scores of the previous chunk's keys and of the query's own."""
    factor: float = query.shape[-1] ** -0.5 if scaling is None else scaling
    keys = into_chunks(key.float(), chunk).transpose(-1, -2)  # [B, H, C, D, l]
    keys = torch.cat([pad(keys[:, :, :-1], (0, 0, 0, 0, 1, 0)), keys], dim=-1)
    return into_chunks(query.float(), chunk) * factor @ keys


def triangle(chunk: int, device: Any) -> tuple[Tensor, Tensor]:
    """bool [l, l] twice: the own chunk's keys up to the query, the previous chunk's keys that are
    fewer than l tokens away."""
    own = torch.ones(chunk, chunk, dtype=torch.bool, device=device).tril()
    return own, ~own


class NormPreservingFeatureMap(nn.Module):
    """phi for each head: states [B, H, L, D] to positive features [B, H, L, 2D] of sum 2."""

    def __init__(self, heads: int, dim: int, generator: torch.Generator | None = None):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(dim).repeat(heads, 1, 1))  # W
        self.normal = nn.Parameter(torch.randn(heads, dim, generator=generator))  # u, any length

    def direct(self, states: Tensor) -> Tensor:
        """z: a new direction with the norm of x."""
        states = states.float()
        turned = householder(states, self.normal.float().unsqueeze(1))
        turned = turned @ self.weight.float().transpose(-1, -2)
        length = states.norm(dim=-1, keepdim=True)
        return turned / turned.norm(dim=-1, keepdim=True).clamp_min(1e-12) * length

    def forward(self, states: Tensor) -> Tensor:
        direction = self.direct(states)
        features = torch.cat([direction.softmax(-1), (-direction).softmax(-1)], dim=-1)
        return features.clamp_min(1e-12)


def householder(states: Tensor, normal: Tensor) -> Tensor:
    """x - 2u u^T x: the reflection at the plane across u = normal / |normal|."""
    unit = normal / normal.norm(dim=-1, keepdim=True)
    return states - 2 * (states * unit).sum(-1, keepdim=True) * unit


@dataclass(frozen=True)
class Still:
    """`Still().convert(model)` puts hybrid attention into the model, in place; then train it.

    chunk: l. topk: salient tokens of each chunk, 0 to l (paper: 4 of 64). layers: which; None is
    all with full attention (sliding layers stay as they are). The new weights are untrained:
    `learn.attention_transfer` fits them. Generate with `past_key_values=StillCache(model)`.
    """

    chunk: int = 64
    topk: int = 4
    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.chunk < 1 or not 0 <= self.topk <= self.chunk:
            raise InputError(
                f"chunk={self.chunk} must be >= 1 and topk={self.topk} from 0 to the chunk's size"
            )

    def convert(self, model: Any, seed: int = 0) -> Any:
        """Replace the attention modules by `StillAttention`s that hold them; returns the model."""
        if still_layers(model):
            raise ModelError("the model has hybrid attention already; `revert(model)` first")
        modules = attention_layers(model)
        full = [number for number, module in modules.items() if not is_sliding(module)]
        chosen = full if self.layers is None else list(self.layers)
        if wrong := [number for number in chosen if number not in full]:
            raise InputError(f"layers {wrong} have no full attention; those that do: {full}")
        text = model.config.get_text_config(decoder=True)
        previous = text._attn_implementation
        model.set_attn_implementation(IMPLEMENTATION)
        if text._attn_implementation != IMPLEMENTATION:
            raise ModelError(
                f"{type(model).__name__} cannot change its attention function; use a model that "
                "follows transformers' attention interface"
            )
        names = {module: name for name, module in model.named_modules()}
        generator = torch.Generator().manual_seed(seed)
        for number in chosen:
            module = modules[number]
            parent, _, name = names[module].rpartition(".")
            hybrid = StillAttention(module, self, text, previous, generator)
            weight = next(module.parameters())
            hybrid.to(device=weight.device).train(module.training)
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
        output = cache.read(still, query, key, value, gate, real, factor)
        cache.waiting = False
    else:
        output, _, _ = attend_text(still, query, key, value, gate, real, factor)
    output = output.to(query.dtype).transpose(1, 2).contiguous()
    if teacher is not None:
        difference = (output.float() - teacher.float()).square().mean((2, 3))
        weight = torch.ones_like(difference) if real is None else real.to(difference.dtype)
        still.transfer_loss = (difference * weight).sum() / weight.sum()
        return teacher, None
    return output, None


def attend_text(
    still: StillAttention,
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
        output, scores = still.attend(query, key, value, gate, scaling)
        return output, scores, None
    # chunks are counted from a text's first token, wherever it stands
    order = real.logical_not().long().argsort(dim=-1, stable=True)
    order = order[:, None].expand(-1, query.shape[1], -1)
    query, key, value, gate = (compress(states, order) for states in (query, key, value, gate))
    output, scores = still.attend(query, key, value, gate, scaling)
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


class StillLayer(ObservedLayer):
    """Two chunks of keys and values in a ring, the salient ones, and the state of all others.

    Token t is in slot t mod 2l. When token t = cl arrives, chunk c - 2 leaves: its best tokens
    join the salient ones, the rest the state.
    """

    keys: Any
    values: Any
    # length [B]: tokens read; place [B, 2l]: the token in each slot, -1: none; score [B, H, 2l];
    # keys, values [B, H, 2l, D]; salient_keys, salient_values [B, H, S, D], of which a row holds
    # its first `kept` [B]; state [B, H, 2D, D]; mass [B, H, 2D]
    rows = ("length", "place", "score", "keys", "values")
    rows += ("salient_keys", "salient_values", "kept", "state", "mass")

    def __init__(self, still: StillAttention):
        super().__init__()
        self.still = still
        self._forget()

    @property
    def started(self) -> bool:
        return self.length is not None

    def store(self, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
        """The new tokens' alone: the former ones are read in another form."""
        if not self.is_initialized:
            self.dtype, self.device = key_states.dtype, key_states.device
            self.is_initialized = True
        return key_states, value_states

    def attend(self, *_: Any, **__: Any) -> Tensor:
        raise ModelError(
            f"layer {self.still.attention.layer_idx}: this cache is for a model with hybrid "
            "attention; its attention function was changed after Still().convert(model)"
        )

    def read(
        self,
        still: StillAttention,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        gate: Tensor,
        real: Tensor | None,
        scaling: float,
    ) -> Tensor:
        """y [B, H, q, D] of the next tokens; the first call may have padding, on either side."""
        if not self.started:
            output, scores, order = attend_text(still, query, key, value, gate, real, scaling)
            if order is not None:
                key, value = compress(key, order), compress(value, order)
            length = torch.full(key.shape[:1], key.shape[2], device=key.device)
            self._fill(key, value, scores, length if real is None else real.sum(-1))
            return output
        if real is not None:
            raise ModelError("a text that was begun cannot be continued by padding")
        steps = [
            self._step(query[:, :, t], key[:, :, t], value[:, :, t], gate[:, :, t], scaling)
            for t in range(query.shape[2])
        ]
        return torch.stack(steps, dim=2)

    @torch.no_grad()
    def _fill(self, key: Tensor, value: Tensor, scores: Tensor, length: Tensor) -> None:
        chunk, topk = self.still.policy.chunk, self.still.policy.topk
        B, H, L, D = key.shape
        routed = ((length - 1) // chunk - 1).clamp_min(0)  # chunks that left the window
        slots = torch.arange(2 * chunk, device=key.device)
        token = length[:, None] - 1 - (length[:, None] - 1 - slots) % (2 * chunk)
        held = token >= routed[:, None] * chunk
        self.length, self.place = length, token.masked_fill(~held, -1)
        at = token.clamp_min(0)[:, None].expand(B, H, -1)
        self.keys, self.values = compress(key, at), compress(value, at)
        self.score = scores.gather(2, at)

        most = int(routed.max())
        self.kept = routed * topk
        if most:
            salient = route(scores, chunk, topk)
            left = torch.arange(L, device=key.device) < routed[:, None] * chunk
            index, _ = far_keys(salient, chunk, most)
            index = (index + torch.arange(most, device=key.device)[:, None] * chunk).flatten(2)
            features = self.still.key_map(key) * (left[:, None] & ~salient).unsqueeze(-1)
            self.salient_keys, self.salient_values = compress(key, index), compress(value, index)
            self.state = features.transpose(-1, -2) @ value.float()
            self.mass = features.sum(2)
        else:
            self.salient_keys, self.salient_values = key[:, :, :0], value[:, :, :0]
            self.state = torch.zeros(B, H, 2 * D, D, device=key.device)
            self.mass = torch.zeros(B, H, 2 * D, device=key.device)

    def _step(
        self, query: Tensor, key: Tensor, value: Tensor, gate: Tensor, scaling: float
    ) -> Tensor:
        """One token for every row, all [B, H, D]."""
        chunk = self.still.policy.chunk
        leaving = (self.length % chunk == 0) & (self.length >= 2 * chunk)
        if bool(leaving.any()):
            self._leave(leaving)
        row = torch.arange(len(key), device=key.device)
        slot = self.length % (2 * chunk)
        self.place = self.place.index_put((row, slot), self.length)
        # copies: a copied layer shares these tensors
        self.keys, self.values, self.score = (
            states.clone() for states in (self.keys, self.values, self.score)
        )
        self.keys[row, :, slot], self.values[row, :, slot] = key, value

        features = self.still.query_map(query.unsqueeze(2)).squeeze(2)  # [B, H, 2D]
        query = query.float() * scaling
        near = torch.einsum("bhd,bhsd->bhs", query, self.keys.float())
        distance = self.length[:, None] - self.place  # of the token in each slot
        here = self.place >= 0
        window = here & (distance < chunk)
        local = near.masked_fill(~window[:, None], -torch.inf)
        score = saliency(local, slot[:, None].expand(-1, key.shape[1]))
        score = score.masked_fill((self.length == 0)[:, None], torch.inf)
        self.score[row, :, slot] = score

        near = near.masked_fill(~here[:, None], -torch.inf)
        far = torch.einsum("bhd,bhsd->bhs", query, self.salient_keys.float())
        known = torch.arange(far.shape[-1], device=far.device) < self.kept[:, None]
        far = far.masked_fill(~known[:, None], -torch.inf)
        weight = torch.cat([near, far], dim=-1)
        weight = (weight - weight.amax(-1, keepdim=True)).exp()
        values = torch.cat([self.values, self.salient_values], dim=2).float()
        numerator = torch.einsum("bhs,bhsd->bhd", weight, values)
        numerator = numerator + gate * torch.einsum("bhf,bhfd->bhd", features, self.state)
        share = (features * self.mass).sum(-1)
        self.length = self.length + 1
        return numerator / (weight.sum(-1) + share + LINEAR_FLOOR).unsqueeze(-1)

    @torch.no_grad()
    def _leave(self, leaving: Tensor) -> None:
        """Route the chunk in the slots that the next token's chunk will take, in these rows."""
        chunk, topk = self.still.policy.chunk, self.still.policy.topk
        B, H, _, D = self.keys.shape
        begin = self.length // chunk % 2 * chunk
        slots = begin[:, None] + torch.arange(chunk, device=begin.device)  # [B, l]
        at = slots[:, None].expand(B, H, chunk)
        key, value = compress(self.keys, at), compress(self.values, at)
        best = self.score.gather(2, at).topk(topk, dim=-1).indices  # [B, H, topk]
        salient = torch.zeros(B, H, chunk, dtype=torch.bool, device=key.device)
        salient = salient.scatter_(2, best, True)
        folded = leaving[:, None, None] & ~salient
        features = self.still.key_map(key) * folded.unsqueeze(-1)
        self.state = self.state + features.transpose(-1, -2) @ value.float()
        self.mass = self.mass + features.sum(2)
        place = self.place.scatter(1, slots, -1)
        self.place = torch.where(leaving[:, None], place, self.place)

        # rows that route nothing write their candidates beyond what they hold, unseen
        end = self.kept[:, None] + torch.arange(topk, device=begin.device)
        size = max(self.salient_keys.shape[2], int(self.kept.max()) + topk)
        to = end[:, None, :, None].expand(B, H, topk, D)
        grown = []
        for held, new in ((self.salient_keys, key), (self.salient_values, value)):
            wide = pad(held, (0, 0, 0, size - held.shape[2]))
            grown.append(wide.scatter(2, to, compress(new, best)))
        self.salient_keys, self.salient_values = grown
        self.kept = self.kept + topk * leaving

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.seen + query_length, 0  # layers that were not converted share the mask

    def _forget(self) -> None:
        for name in self.rows:
            setattr(self, name, None)

    def reset(self) -> None:
        super().reset()
        self._forget()


AttentionInterface.register(IMPLEMENTATION, still_attention)
AttentionMaskInterface.register(IMPLEMENTATION, deferred_mask)
