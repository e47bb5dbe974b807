"""Kernels for few rows: linear layers whose weights are laid out for reading a handful of tokens.

    with packed(model):
        ...  # decode

A pass over one token reads every weight once, and so could a pass over eight: the time of both is
that of the memory. The general matrix product of a CPU does not see this. It lays the weights out
anew for every call, and two tokens take nearly twice as long as one. Laid out once, beforehand, for
few rows, they do not, and the second token is nearly free: speculation lives on that.
`benchmarks/speculation.py` prints both curves for this machine.

Inside the block the model's linear layers are wrapped by ones with a second copy of their weights,
made at the first use and kept as long as the model lives. So it costs the memory of the linear
layers again. Numbers are those of the plain layers up to the order of summation. A weight that was
changed is laid out again, gradients go the plain way, and so does what has nothing to gain: other
devices, other precisions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn

from tokenry.model import compat

_LAYOUTS: WeakKeyDictionary[Any, dict[str, PackedLinear]] = WeakKeyDictionary()
_ACTIVE: WeakSet[Any] = WeakSet()


@contextmanager
def packed(model: Any) -> Iterator[None]:
    """While it lasts, `model` reads few tokens at a time as fast as the machine's memory allows."""
    if model in _ACTIVE:  # the outer block does it
        yield
        return
    found = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
    known = _LAYOUTS.setdefault(model, {})
    for name, linear in found.items():
        if name not in known or known[name].linear is not linear:
            known[name] = PackedLinear(linear)
    _ACTIVE.add(model)
    try:
        for name in found:
            _put(model, name, known[name])
        yield
    finally:
        for name, linear in found.items():
            _put(model, name, linear)
        _ACTIVE.discard(model)


def is_packed(model: Any) -> bool:
    """Whether the model is inside a `packed` block."""
    return model in _ACTIVE


class PackedLinear(nn.Module):
    """A linear layer with its weight laid out for few rows; `linear` is the layer it stands for."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.linear = linear
        self._layout: Tensor | None = None
        self._made_from: tuple[int, int] | None = None

    @property
    def weight(self) -> Tensor:
        return self.linear.weight

    @property
    def bias(self) -> Tensor | None:
        return self.linear.bias

    def forward(self, input: Tensor) -> Tensor:
        weight = self.linear.weight
        if torch.is_grad_enabled() or not compat.can_pack(weight):
            return self.linear(input)
        now = (weight.data_ptr(), 0 if weight.is_inference() else weight._version)
        if now != self._made_from:
            self._layout, self._made_from = compat.pack_weight(weight), now
        assert self._layout is not None
        return compat.packed_linear(input, self._layout, self.linear.bias)


def _put(model: Any, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
