"""What the queries of one forward may see: masks that are evaluated a block of queries at a time.

So a long prompt never needs a [queries, keys] table.

This module confines what the library takes from `transformers.masking_utils`: `sdpa_mask`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import sdpa_mask

ROWS = 256  # queries looked at at a time where a mask must be formed

BlockOfQueries = Callable[[int, int], Tensor]
"""(start, stop) -> bool [B or 1, heads or 1, stop - start, keys]: the keys those queries see."""


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
        table = sdpa_mask(**{**self.arguments, "allow_is_causal_skip": False})
        assert table is not None
        return table

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


def visible(mask: StepMask, start: int, stop: int, past: int, end: int) -> Tensor | None:
    """bool [B or 1, 1, stop - start, end]: the keys of these queries; None: all of them."""
    before = mask.past(start, stop)
    if before is None and mask.causal and stop - start == 1 and end == past + stop:
        return None
    new = mask(start, stop)[..., : end - past]
    if before is None:
        before = new.new_ones(1, 1, past)
    return torch.cat([before[:, None].expand(len(new), -1, stop - start, -1), new], dim=-1)


def allowed(mask: Tensor) -> Tensor:
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


def deferred_mask(**arguments: Any) -> DeferredMask:
    """What the mask interface calls once per forward and kind of layer."""
    return DeferredMask(arguments)


def causal_and_padding(
    mask: DeferredMask | Tensor | None, length: int
) -> tuple[bool, Tensor | None]:
    """Whether the mask of the last `length` tokens is causal but for padding, and which of them
    are real: bool [B, length], or None if all are."""
    if mask is None:
        return True, None
    if not isinstance(mask, DeferredMask):
        return False, None  # a table of the caller's
    real = mask.arguments.get("attention_mask")
    if real is not None:
        real = real[:, -length:].bool()
        real = None if bool(real.all()) else real
    # transformers forbids the skip where it adds anything to the causal mask: packed texts, blocks
    return bool(mask.arguments.get("allow_is_causal_skip", True)), real
