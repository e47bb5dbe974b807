"""Wrappers around parts of a loaded model, and the way back.

A method that lets tokens skip layers, widths or units puts a `Wrapper` in the place of a decoder
layer, of its attention, its feed-forward block or a norm; the wrapper holds what was there as
`base`. `attach` puts them in and returns an `Attached`, whose `remove` puts everything back:

    attached = method.attach(model)     # any AutoModelForCausalLM, changed in place
    attached.save_pretrained(folder)    # the model, and the method's weights beside it
    attached = load_attached(folder)    # both again
    attached.remove()

In a state dict the base's weights keep the names that they had, so the model's own
`save_pretrained` writes a checkpoint that loads without this library, adapters of peft fit models
with and without wrappers, and adapters may come before or after the wrappers. The method's weights
stand in a file of their own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import torch
from torch import Tensor, nn

from tokenry.core.errors import InputError, ModelError
from tokenry.core.files import replacing
from tokenry.core.registry import Role

FILE = "router-{key}.safetensors"
ATTENTION, MLP = "attention", "mlp"


class Wrapper(nn.Module):
    """A module in the place of another, which it holds as `base`; attributes that it does not have
    are the base's. Its other children are the method's own weights.

    Whoever walks over the model by names (state dicts, optimisers, peft) finds the base's parts
    under the names that they had before, as if the wrapper were not there.
    """

    def __init__(self, base: nn.Module):
        super().__init__()
        self.base = base
        self.register_state_dict_post_hook(_base_under_its_own_names)
        self.register_load_state_dict_pre_hook(_own_names_to_base)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in ("base", "_modules"):  # before __init__, and while being copied
                raise
            return getattr(self.base, name)

    def __setattr__(self, name: str, value: Any) -> None:
        # whoever replaces a part of the base, as adapters do, means the base
        base = self.__dict__.get("_modules", {}).get("base")
        if base is not None and isinstance(value, nn.Module) and name not in self._modules:
            setattr(base, name, value)
        else:
            super().__setattr__(name, value)

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        memo = set() if memo is None else memo
        if self in memo:
            return
        if remove_duplicate:
            memo.add(self)
        yield prefix, self
        for name, module in self._modules.items():
            if module is not None:
                path = prefix if name == "base" else f"{prefix}.{name}".lstrip(".")
                yield from module.named_modules(memo, path, remove_duplicate)

    def add_own(self, name: str, module: nn.Module) -> None:
        """Add a child with weights of the method."""
        if hasattr(self.base, name):
            raise ModelError(
                f"a {type(unwrapped(self.base)).__name__} has a part {name} already: remove the "
                f"{type(self).__name__} that is on it before attaching another one"
            )
        self.add_module(name, module)

    def own_names(self) -> set[str]:
        """Names of the children, parameters and buffers that are the method's."""
        return {*self._modules, *self._parameters, *self._buffers} - {"base"}


@dataclass
class Attached:
    """A method on a model. Usable as a context manager that removes it at the end.

    places: (the parent module, the child's name there, the wrapper), in the order of attaching.
    """

    model: Any
    method: Any
    locations: list[tuple[nn.Module, str, Wrapper]]
    ignored: set[str] = field(default_factory=set)

    def wrappers(self, kind: type[Wrapper] = Wrapper) -> list[Any]:
        return [wrapper for _, _, wrapper in self.locations if isinstance(wrapper, kind)]

    def own_modules(self) -> Iterator[nn.Module]:
        for wrapper in self.wrappers():
            for name in sorted(wrapper.own_names() & set(wrapper._modules)):
                yield wrapper.get_submodule(name)

    def own_parameters(self) -> list[nn.Parameter]:
        """The method's weights, for an optimiser."""
        return [weight for module in self.own_modules() for weight in module.parameters()]

    def own_state(self) -> dict[str, Tensor]:
        """The method's weights under their names in the model's state dict."""
        wrappers = {id(wrapper) for wrapper in self.wrappers()}
        state: dict[str, Tensor] = {}
        for path, module in base_model(self.model).named_modules():
            if id(module) in wrappers:
                for name in sorted(module.own_names()):
                    state.update(module.get_submodule(name).state_dict(prefix=f"{path}.{name}."))
        return state

    def remove(self) -> None:
        """Put the original modules back; they keep what they have learned, adapters included."""
        for parent, name, wrapper in reversed(self.locations):
            if parent.get_submodule(name) is not wrapper:
                raise ModelError(
                    f"{name} of {type(parent).__name__} was wrapped once more or replaced since: "
                    "remove what was attached last first"
                )
        for parent, name, wrapper in reversed(self.locations):
            parent.register_module(name, wrapper.base)
        base_model(self.model)._keys_to_ignore_on_save.difference_update(self.ignored)
        self.locations = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self.locations:
            self.remove()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model as its own `save_pretrained` does, and the method beside it."""
        from safetensors.torch import save_file

        folder = Path(folder)
        self.model.save_pretrained(folder)
        metadata = {"method": self.method.key, "settings": json.dumps(asdict(self.method))}
        state = {name: weight.detach().contiguous() for name, weight in self.own_state().items()}
        with replacing(folder / FILE.format(key=self.method.key)) as path:
            save_file(state, path, metadata)

    def load_weights(self, file: str | Path) -> None:
        """Read the method's weights from a file that `save_pretrained` wrote."""
        from safetensors.torch import load_file

        state, mine = load_file(file), self.own_state()
        wrong = sorted(state.keys() ^ mine.keys())
        wrong += [name for name in state.keys() & mine if state[name].shape != mine[name].shape]
        if wrong:
            raise ModelError(
                f"{file} does not fit the model: {len(wrong)} weights are missing, unknown or of "
                f"another shape, such as {wrong[0]}"
            )
        for name, weight in mine.items():  # own_state shares memory with the parameters
            weight.copy_(state[name])


class ComputeRouter(Protocol):
    """The role: which parts f_i of a model each token takes, y_t = sum_i r_i(x_t) f_i(x_t) with
    r_i = 0 for those that token t skips."""

    key: ClassVar[str]

    def attach(self, model: Any) -> Attached:
        """Put the method's wrappers on a model, which is changed in place."""
        ...


class Example(NamedTuple):
    """A router as its contract test takes it: with settings that suit a model of three layers, and
    the contexts, from what `attach` returns, in which its own weights all count."""

    method: ComputeRouter
    using: Sequence[Callable[[Any], AbstractContextManager[Any]]]


compute_router = Role("compute router", ComputeRouter, ("tokenry.model.adaptive",))


def attach(
    model: Any,
    method: Any,
    replacements: Sequence[tuple[nn.Module, str, Wrapper]],
    made: Any = None,
) -> Any:
    """Put the wrappers in place.

    Args:
        made: the class to return, an `Attached`.
    """
    for parent, name, wrapper in replacements:
        if type(wrapper.base) is type(wrapper):
            raise ModelError(
                f"{name} of {type(parent).__name__} has a {type(wrapper).__name__} already; remove "
                "it before attaching another one"
            )
    for parent, name, wrapper in replacements:
        wrapper.train(wrapper.base.training)
        parent.register_module(name, wrapper)
    attached = (made or Attached)(model, method, list(replacements))
    inner = base_model(model)
    attached.ignored = set(attached.own_state()) - inner._keys_to_ignore_on_save
    inner._keys_to_ignore_on_save.update(attached.ignored)
    return attached


def load_attached(folder: str | Path, key: str | None = None, model: Any = None) -> Any:
    """Read what `Attached.save_pretrained` wrote: the model (unless one is given) and the method.

    Args:
        key: which method, if several were saved in the folder.
    """
    from safetensors import safe_open

    folder = Path(folder)
    files = sorted(folder.glob(FILE.format(key=key or "*")))
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "no file"
        raise InputError(f"{folder} holds {names}; expected one {FILE.format(key=key or 'KEY')}")
    with safe_open(files[0], framework="pt") as file:
        metadata = file.metadata() or {}
    try:
        method = compute_router[metadata["method"]](**json.loads(metadata["settings"]))
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise InputError(f"{files[0]} was not written by save_pretrained: {error}") from None
    if model is None:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(folder)
    attached = method.attach(model)
    try:
        attached.load_weights(files[0])
    except ModelError:
        attached.remove()
        raise
    return attached


# Finding the parts of a model


@dataclass(frozen=True)
class UnitLocation:
    """Where a unit stands: residual + after(module(norm(residual))), after being the identity in
    models like Llama and a norm in models like Gemma 3."""

    layer: int
    kind: str
    parent: nn.Module
    norm: str
    module: str
    after: str | None


def base_model(model: Any) -> Any:
    """The transformers model, also inside an adapter."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def decoder_layers(model: Any) -> nn.ModuleList:
    """The list of decoder layers of a causal model."""
    inner = base_model(model)
    decoder = inner.get_decoder() if hasattr(inner, "get_decoder") else inner
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        raise ModelError(
            f"{type(decoder).__name__} of {type(inner).__name__} has no list `layers` of decoder "
            "layers; use a model that is built like Llama (SmolLM, Qwen, Mistral) or Gemma"
        )
    return layers


def units(model: Any) -> list[UnitLocation]:
    """Attention and feed-forward block of every layer, in the order of their evaluation."""
    locations = []
    for number, layer in enumerate(decoder_layers(model)):
        layer = unwrapped(layer)
        names = {name for name, _ in layer.named_children()}
        gemma = {"pre_feedforward_layernorm", "post_feedforward_layernorm"}
        required = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
        if not required <= names or len(names & gemma) == 1:
            raise ModelError(
                f"layer {number} is a {type(layer).__name__} with {', '.join(sorted(names))}: not "
                f"built of {', '.join(sorted(required))} as Llama is, or with "
                f"{', '.join(sorted(gemma))} besides as Gemma is"
            )
        if gemma <= names:
            first, second = "post_attention_layernorm", "post_feedforward_layernorm"
            norm = "pre_feedforward_layernorm"
        else:
            first, second, norm = None, None, "post_attention_layernorm"
        locations += [
            UnitLocation(number, ATTENTION, layer, "input_layernorm", "self_attn", first),
            UnitLocation(number, MLP, layer, norm, "mlp", second),
        ]
    return locations


def unwrapped(module: Any) -> Any:
    """The module below all wrappers."""
    while isinstance(module, Wrapper):
        module = module.base
    return module


def dtype_and_device(module: nn.Module) -> dict[str, Any]:
    """Device and dtype of a module's weights, as arguments for a new one."""
    weight = next(module.parameters())
    return {"device": weight.device, "dtype": weight.dtype}


# What computing costs


def linear_flops(module: nn.Module) -> int:
    """FLOPs of a module's linear layers for one token: two for each weight."""
    own = unwrapped(module)
    return sum(2 * part.weight.numel() for part in own.modules() if isinstance(part, nn.Linear))


def attention_flops(model: Any, context: int, layer: int = 0) -> int:
    """FLOPs of scores and weighted sum for one query over `context` keys."""
    config = base_model(model).config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    if kinds and kinds[layer] == "sliding_attention":
        context = min(context, config.sliding_window)
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 4 * context * size * config.num_attention_heads


def layer_flops(model: Any, layer: int, context: int) -> int:
    """FLOPs of one decoder layer for one token that sees `context` keys; norms not counted."""
    return linear_flops(decoder_layers(model)[layer]) + attention_flops(model, context, layer)


def head_flops(model: Any) -> int:
    """FLOPs of the output layer for one token."""
    return 2 * base_model(model).get_output_embeddings().weight.numel()


def apply_to_selected(module: Callable[[Tensor], Tensor], x: Tensor, chosen: Tensor) -> Tensor:
    """module(x) where `chosen` [B, T], zeros elsewhere; computed for the chosen tokens only."""
    if bool(chosen.all()):
        return module(x)
    if not bool(chosen.any()):
        return torch.zeros_like(x)
    result = module(x[chosen])
    return torch.zeros_like(x, dtype=result.dtype).masked_scatter(chosen[..., None], result)


# Names in state dicts


def _base_under_its_own_names(module: nn.Module, state: Any, prefix: str, metadata: Any) -> None:
    inner = f"{prefix}base."
    for key in [key for key in state if key.startswith(inner)]:
        state[prefix + key.removeprefix(inner)] = state.pop(key)


def _own_names_to_base(module: Any, state: Any, prefix: str, *rest: Any) -> None:
    own = module.own_names()
    for key in [key for key in state if key.startswith(prefix)]:
        name = key.removeprefix(prefix)
        if name.split(".")[0] not in own:
            state[f"{prefix}base.{name}"] = state.pop(key)


def batch_parts(batch: Any) -> tuple[Tensor, Tensor]:
    """ids and attention mask of a batch given as ids [B, T] or as a mapping."""
    if isinstance(batch, Tensor):
        return batch, torch.ones_like(batch)
    ids = batch["input_ids"]
    attention = batch["attention_mask"] if "attention_mask" in batch else torch.ones_like(ids)
    return ids, attention
