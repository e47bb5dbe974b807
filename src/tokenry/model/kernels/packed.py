"""Kernels for few rows: linear layers whose weights are laid out for reading a handful of tokens.

    with packed(model):
        ...  # decode

A pass over one token reads every weight once, and so could a pass over eight: the time of both is
that of the memory. The general matrix product of a CPU does not see this. It lays the weights out
anew for every call, and two tokens take nearly twice as long as one. Laid out once, beforehand, for
few rows, they do not, and seven more tokens are nearly free: speculation lives on that.
`benchmarks/speculation.py` prints both curves for this machine.

The kernels are our own machine code (`few_rows`, with the extra `tokenry[fast]`), for float32 and
bfloat16, else oneDNN's, for float32. Inside the block the model's linear layers are wrapped by ones
with a second copy of their weights, made at the first use and kept as long as the model lives. So
it costs the memory of the linear layers again, with our kernels half of it for float32 weights that
are exact in bfloat16. Numbers are those of the plain layers up to the order of summation. A weight
that was changed is laid out again, gradients go the plain way, and so does what has nothing to
gain: many rows, other devices, other precisions. Attention of few tokens reads the keys that heads
share once (`grouped_attention`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn

from tokenry.model import compat
from tokenry.model.attention.grouped import grouped_queries

MOST_ROWS = 128  # from there on the general kernels are as fast, and they need no second copy

_LAYOUTS: WeakKeyDictionary[Any, dict[str, PackedLinear]] = WeakKeyDictionary()
_ACTIVE: WeakSet[Any] = WeakSet()


@contextmanager
def packed(model: Any) -> Iterator[None]:
    """While it lasts, `model` reads few tokens at a time as fast as the machine's memory allows."""
    if model in _ACTIVE:  # the outer block does it
        yield
        return
    linears = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
    known = _LAYOUTS.setdefault(model, {})
    for name, linear in linears.items():
        if name not in known or known[name].linear is not linear:
            known[name] = PackedLinear(linear)
    _ACTIVE.add(model)
    try:
        for name in linears:
            _put(model, name, known[name])
        with grouped_queries(model):
            yield
    finally:
        for name, linear in linears.items():
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
        self._product: Callable[[Tensor], Tensor] | None = None
        self._made_from: tuple[int, int] | None = None

    @property
    def weight(self) -> Tensor:
        return self.linear.weight

    @property
    def bias(self) -> Tensor | None:
        return self.linear.bias

    def forward(self, input: Tensor) -> Tensor:
        linear = self.linear
        if torch.is_grad_enabled() or input.numel() > MOST_ROWS * linear.in_features:
            return linear(input)
        weight, bias = linear.weight, linear.bias
        now = (weight.data_ptr(), 0 if weight.is_inference() else weight._version)
        if now != self._made_from:
            self._product, self._made_from = product(weight), now
        if self._product is None:
            return linear(input)
        output = self._product(input)
        return output if bias is None else output + bias


def can_pack(weight: Tensor) -> bool:
    """Whether this machine has kernels for few rows that take the weight."""
    if _machine_code() is None:
        return compat.can_pack(weight)
    return weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.bfloat16)


def product(weight: Tensor) -> Callable[[Tensor], Tensor] | None:
    """rows [..., in] -> their product with the weight [out, in], which is laid out beforehand. None
    where nothing is faster than the plain layer."""
    if not can_pack(weight):
        return None
    machine_code = _machine_code()
    if machine_code is not None:
        return machine_code.Panels(weight)
    return partial(compat.packed_linear, weight=compat.pack_weight(weight), bias=None)


@cache
def _machine_code() -> Any:
    try:
        from tokenry.model.kernels import few_rows
    except ImportError:  # numba is not installed: `pip install "tokenry[fast]"`
        return None
    return few_rows


def _put(model: Any, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
