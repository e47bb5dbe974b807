"""A draft head on a model's features: one decoder layer that predicts the next hidden state.

With f_i the model's last hidden state at token i (which the output layer H reads) and e = E[x] its
input embeddings,

    u_i = W_fc [f_i + z_i ; e_{i+1}],      h_{i+1} = D(u_{<=i})
    z_i = W_down( (W_up f_i) * sigmoid(W_gate e_{i+1}) )        feature sampling
    next feature  h_{i+1}
    next logits   H (h_{i+1} + W_o silu(h_{i+1}))               partial alignment

f_i is the same whichever x_{i+1} comes out; feature sampling lets e_{i+1} choose what to take from
it, in a space `expansion` times as wide. The branch W_o takes up what the logits want, so that h
can stay near the feature. W_down and W_o are zero at first: training starts at the head of EAGLE,
which has neither.

Source: Boosting Lossless Speculative Decoding via Feature Sampling and Partial Alignment
Distillation (arXiv 2408.15562). Both formulas are reconstructed from the paper's description. Ours:
the exact form of the layer D, the scales, and the draft vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

from tokenry.core.checks import in_range
from tokenry.core.errors import InputError, ModelError
from tokenry.core.files import read_tensors, write_tensors
from tokenry.core.linear_head import LinearHead
from tokenry.model import compat
from tokenry.model.output import last_hidden, required_head
from tokenry.model.score import unwrap

KIND = "feature head"
KeyValues = tuple[Tensor, Tensor]
"""Keys and values of the head's layer, each [B, heads, L, d / heads]."""


class FeatureHead(nn.Module):
    """What is trained.

    Args:
        width: d.
        heads: of the layer D.
        inner: of the layer D.
        feature_sampling: without them, EAGLE.
        partial_alignment: without them, EAGLE.
        expansion: k, the sampler's space is k times as wide.
        decouple: the logits' gradient stops at h, which then learns the features only.
        vocabulary: ids that can be drafted, all if None; with the some thousand most frequent ones
            the output layer costs little.

    Attributes:
        feature_scale: features and embeddings are divided by these, so that both are of size one
            for the head; training measures them.
        embed_scale: as `feature_scale`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        inner: int | None = None,
        *,
        feature_sampling: bool = True,
        partial_alignment: bool = True,
        expansion: int = 2,
        decouple: bool = False,
        vocabulary: Tensor | None = None,
    ):
        super().__init__()
        in_range("heads", heads, "[1, inf)", integer=True)
        if width % (2 * heads):
            raise InputError(f"{heads} heads do not divide a width of {width} into even parts")
        in_range("expansion", expansion, "[1, inf)", integer=True)
        in_range("inner", inner, "[1, inf)", integer=True, optional=True)
        self.fc = nn.Linear(2 * width, width)
        self.layer = DraftLayer(width, heads, inner or 4 * width)
        self.sampler = FeatureSampler(width, expansion) if feature_sampling else None
        self.branch = nn.Linear(width, width, bias=False) if partial_alignment else None
        if self.branch is not None:
            nn.init.zeros_(self.branch.weight)
        self.decouple = decouple
        self.feature_scale = nn.Buffer(torch.ones(()))
        self.embed_scale = nn.Buffer(torch.ones(()))
        self.vocabulary = None if vocabulary is None else nn.Buffer(vocabulary.long())

    @classmethod
    def of(cls, model: Any, seed: int = 0, **options: Any) -> FeatureHead:
        """An untrained head for a model; `options` are the constructor's."""
        table = model.get_input_embeddings()
        width = table.embedding_dim
        default = next(count for count in (width // 64, 4, 2, 1) if count and width % count == 0)
        options = {"heads": default} | options
        vocabulary = options.get("vocabulary")
        if vocabulary is not None and not (
            len(vocabulary)
            and 0 <= int(vocabulary.min()) <= int(vocabulary.max())
            and int(vocabulary.max()) < table.num_embeddings
        ):
            raise InputError(
                f"the draft vocabulary must be ids below {table.num_embeddings}, at least one"
            )
        with torch.random.fork_rng():
            torch.manual_seed(seed)  # torch initialises from the global generator
            head = cls(width, **options)
        return head.to(table.weight.device)

    def forward(
        self,
        features: Tensor,
        embedded: Tensor,
        memory: KeyValues | None = None,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, KeyValues]:
        """Predicted features f^ [B, T, d], what the output layer is to read [B, T, d], the memory.

        Args:
            features: f_i, [B, T, d].
            embedded: e_{i+1}, [B, T, d].
            memory: of the L earlier pairs.
            positions: [B, T], i of each pair; by default they go on behind the memory, in order.
            mask: [B or 1, 1, T, L + T] bool, which pairs each one sees; default: the memory, itself
                and those before it.
        """
        dtype, T, L = self.fc.weight.dtype, features.shape[1], 0
        if memory is not None:
            L = memory[0].shape[2]
        if positions is None:
            positions = torch.arange(L, L + T, device=features.device)[None]
        if mask is None and L:
            mask = torch.ones(1, 1, T, L + T, dtype=torch.bool, device=features.device).tril(L)
        f, e = features.to(dtype) / self.feature_scale, embedded.to(dtype) / self.embed_scale
        if self.sampler is not None:
            f = f + self.sampler(f, e)
        h, longer = self.layer(self.fc(torch.cat([f, e], dim=-1)), memory, positions, mask)
        answer = h
        if self.branch is not None:
            answer = h.detach() if self.decouple else h
            answer = answer + self.branch(silu(answer))
        return h * self.feature_scale, answer * self.feature_scale, longer

    def check(self, model: Any) -> None:
        """ModelError if the head was made for features of another width."""
        width, table = self.fc.out_features, model.get_input_embeddings()
        if table.embedding_dim != width:
            raise ModelError(
                f"the head is for features of {width} dimensions, the model has "
                f"{table.embedding_dim}: it was trained for another model"
            )

    def output_head(self, model: Any) -> LinearHead:
        """The model's output layer with its scale and soft cap, the rows of the draft vocabulary
        only, frozen."""
        head = required_head(model)
        rows = slice(None) if self.vocabulary is None else self.vocabulary
        bias = None if head.bias is None else head.bias.detach()[rows]
        return replace(head, weight=head.weight.detach()[rows], bias=bias)

    def output_rows(self, model: Any) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of `output_head`."""
        head = self.output_head(model)
        return head.weight, head.bias

    def to_ids(self, positions: Sequence[int]) -> list[int]:
        """The ids of entries of the draft vocabulary."""
        if self.vocabulary is None:
            return list(positions)
        return self.vocabulary[torch.as_tensor(positions, dtype=torch.long)].tolist()

    def spread(self, probs: Tensor, size: int) -> Tensor:
        """Probabilities over the draft vocabulary as [size], over the model's."""
        if self.vocabulary is None:
            return probs
        return torch.zeros(size).scatter_(0, self.vocabulary.cpu(), probs)

    def save(self, path: str | Path) -> None:
        """Write the head as safetensors; nothing is left at `path` when that fails."""
        about = {
            "kind": KIND,
            "width": self.fc.out_features,
            "heads": self.layer.heads,
            "inner": self.layer.down.in_features,
            "feature_sampling": self.sampler is not None,
            "partial_alignment": self.branch is not None,
            "expansion": 1 if self.sampler is None else self.sampler.expansion,
            "decouple": self.decouple,
        }
        write_tensors(path, self.state_dict(), about)

    @classmethod
    def load(cls, path: str | Path) -> FeatureHead:
        tensors, about = read_tensors(path, KIND)
        options = {name: value for name, value in about.items() if name != "kind"}
        head = cls(**options, vocabulary=tensors.get("vocabulary"))
        head.load_state_dict(tensors)
        return head


class FeatureSampler(nn.Module):
    """z = W_down( (W_up f) * sigmoid(W_gate e) ): [B, T, d] -> [B, T, d], zero before training."""

    def __init__(self, width: int, expansion: int = 2):
        super().__init__()
        self.expansion = expansion
        self.up = nn.Linear(width, expansion * width, bias=False)
        self.gate = nn.Linear(width, expansion * width, bias=False)
        self.down = nn.Linear(expansion * width, width, bias=False)
        nn.init.zeros_(self.down.weight)

    def forward(self, feature: Tensor, embedded: Tensor) -> Tensor:
        return self.down(self.up(feature) * self.gate(embedded).sigmoid())


class DraftLayer(nn.Module):
    """A decoder layer with rotary positions: x + attention, then + SwiGLU."""

    def __init__(self, width: int, heads: int, inner: int):
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_inner = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 2 * inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(
        self, x: Tensor, memory: KeyValues | None, positions: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, KeyValues]:
        joint = self.qkv(self.before_attention(x)).unflatten(-1, (3, self.heads, -1))
        query, key, value = joint.permute(2, 0, 3, 1, 4)  # each [B, heads, T, d / heads]
        query, key = rotate(query, positions), rotate(key, positions)
        if memory is not None:
            key, value = torch.cat([memory[0], key], 2), torch.cat([memory[1], value], 2)
        seen = scaled_dot_product_attention(query, key, value, mask, is_causal=mask is None)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        gate, up = self.up(self.before_inner(x)).chunk(2, dim=-1)
        return x + self.down(silu(gate) * up), (key, value)


def rotate(states: Tensor, positions: Tensor, base: float = 10_000.0) -> Tensor:
    """Rotary position embedding of [B, heads, T, D] at `positions` [B or 1, T]."""
    half = states.shape[-1] // 2
    speed = base ** (-torch.arange(half, device=states.device, dtype=torch.float32) / half)
    angle = positions[:, None, :, None].float() * speed
    cos, sin = angle.cos().to(states.dtype), angle.sin().to(states.dtype)
    first, second = states[..., :half], states[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


@torch.no_grad()
def features_of(model: Any, ids: Tensor, attention: Tensor) -> Tensor:
    """The last hidden states [B, T, d] of texts, as the output layer reads them."""
    compat.require_left_padding(model, attention)
    with last_hidden(model) as caught:
        unwrap(model)(
            input_ids=ids,
            attention_mask=attention,
            position_ids=(attention.cumsum(1) - 1).clamp_min(0),
            logits_to_keep=1,
            use_cache=False,
        )
    return caught[-1]
