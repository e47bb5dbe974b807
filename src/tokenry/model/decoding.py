"""DecodingState: a batch of prefixes with their KV cache and next-token logits.

Samplers, beam search, sequential Monte Carlo and speculation all do the same few things to a batch
of prefixes: append tokens, repeat or drop rows, take tokens back, and look at a tree of possible
continuations at once. They are here, once, for any causal model of transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tokenry.core.errors import InputError, ShapeError
from tokenry.model import compat
from tokenry.model.cache.full import decoding_cache


@dataclass
class DecodingState:
    """B prefixes of one length (left padding makes up differences), changed in place by its
    methods.

    Build one with `start`.

    Args:
        attention: [B, L] bool, False on padding.

    Attributes:
        logits: [B, V] float32, for the token after each prefix; None after `crop`, until the next
            `append`.
    """

    model: Any
    cache: Any
    attention: Tensor
    next_logits: Tensor | None
    last_output: Any = field(default=None, init=False, repr=False)
    _tree_logits: Tensor | None = field(default=None, init=False, repr=False)

    @classmethod
    @torch.inference_mode()
    def start(
        cls, model: Any, ids: Tensor, attention: Tensor | None = None, cache: Any = None
    ) -> DecodingState:
        """Read the prefixes `ids` [B, T]; `attention` [B, T] is False on left padding.

        Args:
            cache: an empty one of a cache policy; None keeps every token in every layer.
        """
        if ids.ndim != 2 or not ids.shape[1]:
            raise ShapeError(f"ids must be [B, T] with T >= 1, got {list(ids.shape)}")
        attention = torch.ones_like(ids) if attention is None else attention
        if attention.shape != ids.shape:
            raise ShapeError(f"attention must be {list(ids.shape)}, got {list(attention.shape)}")
        if not attention[:, -1].all():
            raise ShapeError("prefixes must be padded on the left: a row ends in padding")
        compat.require_attention(model, "cannot be forked, shortened or read in a tree")
        empty = attention[:, :0].bool()
        state = cls(model, decoding_cache() if cache is None else cache, empty, None)
        state._forward(ids, attention.bool(), last_only=True)
        return state

    @property
    def length(self) -> int:
        """Columns in the cache, padding included."""
        return self.attention.shape[1]

    @property
    def rows(self) -> int:
        return self.attention.shape[0]

    @property
    def logits(self) -> Tensor:
        """Logits for the next token, [B, V] float32."""
        if self.next_logits is None:
            raise InputError("no next-token logits after crop(): append a token first")
        return self.next_logits

    @torch.inference_mode()
    def append(self, tokens: Tensor) -> Tensor:
        """Extend every row by its token ([B]) or its n tokens ([B, n]), in one forward pass.

        Returns:
            The logits after each new token, [B, V] or [B, n, V].
        """
        many = tokens if tokens.ndim == 2 else tokens[:, None]
        if many.ndim != 2 or many.shape[0] != self.rows:
            raise ShapeError(
                f"tokens must be [{self.rows}] or [{self.rows}, n], got {tokens.shape}"
            )
        logits = self._forward(many, torch.ones_like(many, dtype=torch.bool))
        return logits if tokens.ndim == 2 else logits[:, 0]

    @torch.inference_mode()
    def select(self, index: Tensor) -> None:
        """Keep these rows in this order; a row may be repeated, which forks it."""
        index = torch.as_tensor(index, dtype=torch.long, device=self.attention.device)
        compat.select_rows(self.cache, index)
        self.attention = self.attention[index]
        if self.next_logits is not None:
            self.next_logits = self.next_logits[index]

    def fork(self, copies: int) -> None:
        """Repeat every row `copies` times, copies side by side."""
        rows = torch.arange(self.rows, device=self.attention.device)
        self.select(rows.repeat_interleave(copies))

    @torch.inference_mode()
    def crop(self, count: int) -> None:
        """Forget the last `count` tokens of every row."""
        if not 0 <= count < self.length:
            raise InputError(f"cannot forget {count} of {self.length} tokens")
        if count:
            compat.crop_columns(self.cache, self.length - count)
            self.attention = self.attention[:, :-count]
            self.next_logits = self._tree_logits = self.last_output = None

    def copy(self) -> DecodingState:
        """An independent state at the same place."""
        return DecodingState(
            self.model, compat.copy_cache(self.cache), self.attention, self.next_logits
        )

    @torch.inference_mode()
    def tree(self, tokens: Tensor, parents: Tensor, **options: Any) -> Tensor:
        """Logits after every node of a token tree on top of each prefix, [B, M, V], in one forward
        pass; [M, V] for one tree that comes without a batch dimension.

        Every node sees the prefix, its ancestors and itself, at the position of its depth. The
        nodes stay in the cache until `keep` says which of them are taken. `options` go to the
        model; its whole output is in `last_output` until then.

        Args:
            tokens: [B, M] or [M].
            parents: the same shape, the index of each node's parent, which comes before it; -1 for
                a child of the prefix. A row with fewer nodes fills up with such children.
        """
        alone = tokens.ndim == 1
        tokens, parents = (t[None] if alone else t for t in (tokens, torch.as_tensor(parents)))
        if tokens.shape != parents.shape or len(tokens) != self.rows:
            raise ShapeError(
                f"{self.rows} prefixes need tokens and parents [{self.rows}, M], got "
                f"{list(tokens.shape)} and {list(parents.shape)}"
            )
        device = self.attention.device
        ancestors, depth = ancestor_mask(parents.to(device))
        prefix = self.attention
        positions = prefix.sum(1, keepdim=True) + depth  # [B, M]
        key_positions = torch.cat([(prefix.cumsum(1) - 1).clamp_min_(0), positions], dim=1)
        past = prefix[:, None].expand(-1, tokens.shape[1], -1)
        allowed = torch.cat([past, ancestors], dim=2)  # [B, M, L + M]
        mask = compat.mask_argument(self.model, allowed, positions, key_positions)
        inputs = {"input_ids": tokens} if "inputs_embeds" not in options else {}
        self.last_output = self.model(
            **inputs,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            **options,
        )
        self.attention = torch.cat([prefix, torch.ones_like(tokens, dtype=torch.bool)], dim=1)
        logits = self._tree_logits = self.last_output.logits.float()
        self.next_logits = None
        return logits[0] if alone else logits

    @property
    def undecided(self) -> bool:
        """Whether the nodes of a tree wait for `keep`."""
        return self._tree_logits is not None

    @torch.inference_mode()
    def keep(self, path: Tensor | Sequence[Sequence[int]]) -> None:
        """Keep these nodes of the last tree, from the root down, and drop the others.

        (Its columns stay as padding: they are seen by nobody.)

        Args:
            path: [B, n] or [n], n >= 1, indices into the last `tree` call's nodes; -1 fills up a
                row whose path is shorter.
        """
        if self._tree_logits is None:
            raise InputError("keep() follows a tree(): there are no nodes to choose from")
        path = torch.as_tensor(path, dtype=torch.long, device=self.attention.device)
        path = path[None] if path.ndim == 1 else path
        prefix = self.length - self._tree_logits.shape[1]
        compat.keep_columns(self.cache, prefix, path.clamp_min(0))
        taken = path >= 0
        self.attention = torch.cat([self.attention[:, :prefix], taken], dim=1)
        last = path.gather(1, taken.sum(1, keepdim=True) - 1)[:, 0]
        self.next_logits = self._tree_logits[torch.arange(self.rows, device=last.device), last]
        self._tree_logits = self.last_output = None

    def _forward(self, ids: Tensor, real: Tensor, last_only: bool = False) -> Tensor:
        logits = self._read(ids, real, last_only).logits.float()
        self.next_logits = logits[:, -1]
        return logits

    def _read(self, ids: Tensor, real: Tensor, last_only: bool, **options: Any) -> Any:
        """The model's output for new columns, which become part of the prefixes."""
        attention = torch.cat([self.attention, real], dim=1)
        positions = (attention.cumsum(1) - 1).clamp_min_(0)
        output = self.model(
            input_ids=ids,
            attention_mask=self._mask(attention, positions, ids.shape[1]),
            position_ids=positions[:, -ids.shape[1] :],
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1 if last_only else 0,
            **options,
        )
        self.attention = attention
        return output

    def _mask(self, attention: Tensor, positions: Tensor, new: int) -> Any:
        """The mask for the last `new` columns of attention [B, L].

        The model's own counts its windows in columns. Where columns inside of a text are void, as
        `keep` leaves them behind a shorter path, that is not what it counts in without them.
        """
        window = compat.smallest_window(self.model)
        if window is None or attention.shape[1] <= window:
            return attention.long()
        if not bool((attention[:, :-1] > attention[:, 1:]).any()):
            return attention.long()
        order = torch.arange(attention.shape[1], device=attention.device)
        allowed = attention[:, None] & (order <= order[-new:, None])
        return compat.mask_argument(self.model, allowed, positions[:, -new:], positions)


def ancestor_mask(parents: Tensor) -> tuple[Tensor, Tensor]:
    """([..., M, M] bool: j is i's ancestor or i itself; [..., M] depth, 0 for roots) of parent
    lists [..., M]."""
    count = parents.shape[-1]
    order = torch.arange(count, device=parents.device)
    if not bool(((parents < order) & (parents >= -1)).all()):
        raise ShapeError("every parent must come before its child, and be -1 for a root")
    mask = torch.eye(count, dtype=torch.bool, device=parents.device).repeat(
        *parents.shape[:-1], 1, 1
    )
    depth = torch.zeros_like(parents)
    current = parents
    while bool((inside := current >= 0).any()):  # one step per level of the tree
        mask |= (current[..., None] == order) & inside[..., None]
        depth += inside
        current = torch.where(inside, parents.gather(-1, current.clamp_min(0)), -1)
    return mask, depth
