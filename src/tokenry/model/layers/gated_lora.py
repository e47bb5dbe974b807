"""Gated LoRA: a low-rank change of a model that only chosen tokens feel.

Every linear map y = W x of the model becomes, for token t,

    y_t = W x_t + I(t) · (alpha / rank) · B A x_t,      A [rank, in], B [out, rank], B = 0 at first

with the gate I(t) = 1 on the chosen tokens (appended masks, for instance) and 0 on all others. The
others' outputs are not 0 · change added to the model's: they are the model's, bit for bit, after
any training.

    lora = GatedLoRA.of(model, rank=16)
    with lora.gate(model, chosen):            # chosen: [B, T] bool
        model(inputs_embeds=..., ...)
    lora.save("lora.safetensors")

The wrapped modules are in the model only inside of `gate`, and the adapter's weights never are in
its state dict: what `model.save_pretrained` writes is the model.

Source: Your LLM Knows the Future: Uncovering Its Multi-Token Prediction Potential (arXiv
2507.11851).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from tokenry.core.checks import in_range
from tokenry.core.errors import ModelError, ShapeError
from tokenry.core.files import read_tensors, write_tensors
from tokenry.model.kernels.packed import PackedLinear
from tokenry.model.score import unwrap


@dataclass
class Gate:
    """Which tokens feel the change: rows [n], indices into the pass's B · T tokens; None: none."""

    rows: Tensor | None = None
    tokens: int = 0


class LowRank(nn.Module):
    """x -> scale · B A x, computed in the weights' dtype."""

    def __init__(self, inputs: int, outputs: int, rank: int, scale: float):
        super().__init__()
        self.A = nn.Parameter(torch.empty(rank, inputs))
        self.B = nn.Parameter(torch.zeros(outputs, rank))
        self.scale = scale
        nn.init.kaiming_uniform_(self.A, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return (x.to(self.A.dtype) @ self.A.T @ self.B.T) * self.scale


class GatedLoRALinear(nn.Module):
    """A linear map with a low-rank change at the gate's tokens."""

    def __init__(self, linear: nn.Module, change: LowRank, gate: Gate):
        super().__init__()
        self.linear, self.change, self.opened = linear, change, gate

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        y = self.linear(x, *args, **options)
        rows = self.opened.rows
        if rows is None or not len(rows):
            return y
        flat = x.reshape(-1, x.shape[-1])
        if len(flat) != self.opened.tokens:
            raise ModelError(
                f"a linear map reads {len(flat)} rows in a pass over {self.opened.tokens} tokens, "
                "so the gate cannot tell which are which; leave such maps out of the adapter's "
                "`targets`"
            )
        change = self.change(flat[rows]).to(y.dtype)
        return y.flatten(0, -2).index_add(0, rows, change).view_as(y)

    def state_dict(self, *args: Any, **options: Any) -> Any:
        """The wrapped map's, under the names that it had."""
        return self.linear.state_dict(*args, **options)


class GatedLoRA(nn.Module):
    """The low-rank changes of one model's linear maps, by the maps' names; not tied to the model's
    object: it fits any model with maps of these names and shapes."""

    def __init__(self, shapes: Mapping[str, tuple[int, int]], rank: int = 16, alpha: float = 16.0):
        """shapes: (inputs, outputs) of each map. rank: 128 in the paper, whose small ranks did
        nearly as well. alpha: the change is scaled by alpha / rank."""
        super().__init__()
        if not shapes:
            raise ModelError("no linear map to adapt: the model has none of the wanted names")
        in_range("rank", rank, "[1, inf)", integer=True)
        in_range("alpha", alpha, "(0, inf)")
        self.names, self.rank, self.alpha = tuple(sorted(shapes)), rank, alpha
        changes = [LowRank(*shapes[name], rank, alpha / rank) for name in self.names]
        self.maps = nn.ModuleList(changes)
        self._gate = Gate()
        self._wrapped: WeakKeyDictionary[Any, list[tuple[Any, str, GatedLoRALinear]]] = (
            WeakKeyDictionary()
        )

    @classmethod
    def of(
        cls,
        model: Any,
        rank: int = 16,
        alpha: float | None = None,
        targets: Sequence[str] | None = None,
        seed: int = 0,
    ) -> GatedLoRA:
        """An untrained adapter, which changes nothing, for the model's linear maps.

        Args:
            alpha: None takes the rank.
            targets: last parts of the maps' names ("q_proj"); None takes every map except the
                output layer.
        """
        maps = linear_maps(model, targets)
        with torch.random.fork_rng():
            torch.manual_seed(seed)  # torch initialises from the global generator
            lora = cls(
                {name: map_shape(module) for name, module in maps.items()},
                rank,
                rank if alpha is None else alpha,
            )
        return lora.to(next(model.parameters()).device)

    @contextmanager
    def gate(self, model: Any, chosen: Tensor) -> Iterator[None]:
        """Passes of `model` inside change the tokens `chosen` [B, T] bool."""
        if chosen.dtype != torch.bool or chosen.ndim != 2:
            raise ShapeError(f"the gate must be [B, T] bool, got {list(chosen.shape)}")
        slots = self._slots(model)
        self._gate.rows = chosen.reshape(-1).nonzero()[:, 0].to(next(self.parameters()).device)
        self._gate.tokens = chosen.numel()
        try:
            for parent, name, wrapped in slots:
                setattr(parent, name, wrapped)
            yield
        finally:
            for parent, name, wrapped in slots:
                setattr(parent, name, wrapped.linear)
            self._gate.rows = None

    def _slots(self, model: Any) -> list[tuple[Any, str, GatedLoRALinear]]:
        """Where each wrapped map goes: (module, attribute, wrapped map); made once per model."""
        model = unwrap(model)
        if model not in self._wrapped:
            known = linear_maps(model, None)
            slots = []
            for name, change in zip(self.names, self.maps, strict=True):
                assert isinstance(change, LowRank)
                shape = (change.A.shape[1], change.B.shape[0])
                if name not in known or map_shape(known[name]) != shape:
                    raise ModelError(
                        f"the adapter changes {name} ({shape[0]} -> {shape[1]}), which "
                        f"{type(model).__name__} does not have: it belongs to another model"
                    )
                parent, _, attribute = name.rpartition(".")
                wrapped = GatedLoRALinear(known[name], change, self._gate)
                slots.append((model.get_submodule(parent), attribute, wrapped))
            self._wrapped[model] = slots
        slots = self._wrapped[model]
        for parent, name, wrapped in slots:
            if getattr(parent, name) is not wrapped.linear:  # the model was adapted meanwhile
                del self._wrapped[model]
                return self._slots(model)
        return slots

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles hold the adapter, not the models that it was used with."""
        return {**self.__dict__, "_wrapped": WeakKeyDictionary()}

    def flops(self, tokens: int) -> int:
        """Floating point operations that the change costs for so many chosen tokens."""
        return 2 * tokens * sum(weight.numel() for weight in self.maps.parameters())

    def tensors(self) -> dict[str, Tensor]:
        """The weights by the names of the maps: what a file holds."""
        named_maps = zip(self.names, self.maps, strict=True)
        return {
            f"{name}.{key}": w for name, one in named_maps for key, w in one.state_dict().items()
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], alpha: float) -> GatedLoRA:
        """The inverse of `tensors`."""
        names = [key[: -len(".A")] for key in tensors if key.endswith(".A")]
        shapes = {n: (tensors[f"{n}.A"].shape[1], tensors[f"{n}.B"].shape[0]) for n in names}
        rank = len(tensors[f"{names[0]}.A"]) if names else 1
        lora = cls(shapes, rank, alpha)
        for name, change in zip(lora.names, lora.maps, strict=True):
            change.load_state_dict({key: tensors[f"{name}.{key}"] for key in ("A", "B")})
        return lora

    def save(self, path: str | Path) -> None:
        """Write the adapter as safetensors; nothing is left at `path` when that fails."""
        write_tensors(path, self.tensors(), {"kind": "gated LoRA", "alpha": self.alpha})

    @classmethod
    def load(cls, path: str | Path) -> GatedLoRA:
        tensors, about = read_tensors(path, "gated LoRA")
        return cls.from_tensors(tensors, about["alpha"])


def linear_maps(model: Any, targets: Sequence[str] | None) -> dict[str, nn.Module]:
    """The model's linear maps by name, the output layer left out. A map that is wrapped (by PEFT,
    by another adapter, for speed) is one map, with what it is wrapped in."""
    from transformers.pytorch_utils import Conv1D

    model = unwrap(model)
    output = plain_map(model.get_output_embeddings())
    maps: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        plain = plain_map(module)
        if not isinstance(plain, nn.Linear | Conv1D) or plain is output:
            continue
        parts = name.split(".")
        if any(".".join(parts[:end]) in maps for end in range(1, len(parts))):
            continue  # a part of a map that is found already
        if targets is None or name.rpartition(".")[2] in targets:
            maps[name] = module
    return maps


def plain_map(module: nn.Module) -> nn.Module:
    """What stands inside of wrappers."""
    while True:
        if isinstance(module, GatedLoRALinear | PackedLinear):
            module = module.linear
        elif isinstance(inner := getattr(module, "base_layer", None), nn.Module):
            module = inner
        else:
            return module


def map_shape(module: nn.Module) -> tuple[int, int]:
    """(inputs, outputs). GPT-2's Conv1D keeps its matrix the other way round."""
    plain: Any = plain_map(module)
    if isinstance(plain, nn.Linear):
        return plain.in_features, plain.out_features
    return plain.weight.shape[0], plain.weight.shape[1]
