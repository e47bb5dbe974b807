"""HiddenDecoding: a decoding state that also keeps the last hidden state of every row.

For whatever reads the model's mind on the way: classifiers of prefixes, value heads, probes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenry.core.errors import InputError
from tokenry.model import compat
from tokenry.model.decoding import DecodingState
from tokenry.model.output import last_hidden


@dataclass
class HiddenDecoding(DecodingState):
    """A `DecodingState` with `hidden` [B, D]: the last layer's states of the last tokens, as the
    output layer reads them; None after `crop` until the next `append`, and after a `tree`."""

    last_hidden: Tensor | None = None

    @property
    def hidden(self) -> Tensor:
        if self.last_hidden is None or self.next_logits is None:
            raise InputError("no hidden states after crop(): append a token first")
        return self.last_hidden

    def select(self, index: Tensor) -> None:
        super().select(index)
        if self.last_hidden is not None:
            index = torch.as_tensor(index, dtype=torch.long, device=self.last_hidden.device)
            self.last_hidden = self.last_hidden[index]

    def copy(self) -> HiddenDecoding:
        cache = compat.copy_cache(self.cache)
        return HiddenDecoding(self.model, cache, self.attention, self.next_logits, self.last_hidden)

    def _read(self, ids: Tensor, real: Tensor, last_only: bool, **options: Any) -> Any:
        with last_hidden(self.model) as caught:
            output = super()._read(ids, real, last_only, **options)
        self.last_hidden = caught[-1][:, -1]
        return output
