"""Toy models that are trained once: kept by what they were made from.

A model's name in the cache is a hash of the recipe (its parameters), of the source of the modules
of the functions and classes in it, and of torch's and transformers' versions. Whoever asks
for the same again, another paper or another test, gets the weights that were kept; whoever changes
the training gets new ones.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tokenry.core.errors import InputError
from tokenry.core.files import replacing
from tokenry.core.versions import installed
from tokenry.learn.fit import fit
from tokenry.model.hub import home

if TYPE_CHECKING:
    import torch

M = TypeVar("M")


def trained(build: Callable[[], M], train: Callable[[M], Any], *recipe: Any) -> M:
    """The model that `build` makes and `train` trains in place, from the cache if it is there.

    Args:
        build: makes the untrained model; called every time.
        train: trains it in place; called only when the cache has no such model.
        recipe: everything that decides the result: seed, sizes, steps, data. Values whose repr says
            all about them, a world of the library stands for its source too, and a function for the
            source of its module.

    Returns:
        The model in evaluation mode, its weights without gradients.

    Raises:
        InputError: when the repr of a part of the recipe is only its address.
    """
    from safetensors.torch import load_model, save_model

    model: Any = build()
    file = home() / "toys" / f"{_digest(build, train, *recipe)}.safetensors"
    if file.exists():
        load_model(model, file)
    else:
        train(model)
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as temporary:
            save_model(model, str(temporary))
    return model.eval().requires_grad_(False)


def fitted(
    build: Callable[[], M],
    loss: Callable[[M, torch.Generator], torch.Tensor],
    *recipe: Any,
    **options: Any,
) -> M:
    """The same for a model that minimises a loss.

    Args:
        build: makes the untrained model.
        loss: of the model, on a batch that is drawn with the generator.
        recipe: everything that decides the result beside the options.
        options: of `learn.fit.fit`.
    """

    def train(model: Any) -> None:
        fit(lambda step, generator: loss(model, generator), model, **options)

    return trained(build, train, loss, *recipe, *options.values())


def _digest(*parts: Any) -> str:
    described = [_described(part) for part in parts], installed("torch", "transformers")
    return hashlib.sha256(repr(described).encode()).hexdigest()[:24]


def _described(part: Any) -> str:
    """A function by its module's source; a value by its repr, a world of ours by source too."""
    if inspect.isroutine(part) or inspect.isclass(part):
        return _source(part)
    text = repr(part)
    if " at 0x" in text:
        raise InputError(f"{text} does not say what a toy model is made from: give it a repr")
    ours = [kind for kind in type(part).__mro__ if kind.__module__.startswith("tokenry.")]
    return text + "".join(_source(kind) for kind in ours)


def _source(function: Callable[..., Any]) -> str:
    """The source of the module that a function was written in."""
    module = sys.modules.get(getattr(function, "__module__", ""), None)
    file = getattr(module, "__file__", None)
    return Path(file).read_text(encoding="utf-8") if file else inspect.getsource(function)
