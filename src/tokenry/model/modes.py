"""Training and evaluation mode of a model, left exactly as they were, and dropout switched off.

    with evaluating(model): ...              evaluation mode, no gradient
    with switched_off(dropouts(model)): ...  training mode stays, every dropout probability is 0

A policy that is compared with itself (old and new log-probabilities, a reference that it starts
from) has to be one function: with dropout it is another one at every call. Evaluation mode would
also end gradient checkpointing and whatever else depends on the mode, so the probabilities are
set to 0 instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every module is in its former mode."""
    trained = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in trained:
            module.training = True


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """`evaluation_mode`, and no gradient."""
    with evaluation_mode(model), torch.no_grad():
        yield


class Dropout(NamedTuple):
    """One dropout probability of a model: `values[name]`, usually `probability`."""

    values: MutableMapping[str, Any]
    name: str
    probability: float


def dropouts(model: nn.Module) -> list[Dropout]:
    """Every positive dropout probability in a model, wherever its code reads it from.

    Numbers whose own name, or whose module's class, says "drop": `nn.Dropout.p`, a layer's
    `attention_dropout`, `attn_dropout_p`, `layerdrop`, PEFT's `lora_dropout` and `rank_dropout`;
    and those of the configurations that modules keep, which some models read at every call.
    """
    owners: dict[int, Any] = {}
    for module in model.modules():
        owners[id(module)] = module
        for config in _configs(getattr(module, "config", None)):
            owners[id(config)] = config
    return [site for owner in owners.values() for site in _of(owner)]


@contextmanager
def switched_off(sites: Iterable[Dropout]) -> Iterator[None]:
    """These probabilities are 0 inside and what they were afterwards."""
    for values, name, _ in sites:
        values[name] = 0.0
    try:
        yield
    finally:
        for values, name, probability in sites:
            values[name] = probability


def _configs(config: Any) -> Iterator[Any]:
    """A configuration and those inside it (of the text part, ...)."""
    from transformers import PreTrainedConfig

    if isinstance(config, PreTrainedConfig):
        yield config
        for inner in vars(config).values():
            yield from _configs(inner)


def _of(owner: Any) -> Iterator[Dropout]:
    named = "drop" in type(owner).__name__.lower()
    for name, value in vars(owner).items():
        if not (named or "drop" in name.lower()):
            continue
        if _is_probability(value):
            yield Dropout(vars(owner), name, value)
        elif isinstance(value, dict) and not isinstance(owner, dict):
            for key, inner in value.items():  # of each adapter, by its name
                if _is_probability(inner):
                    yield Dropout(value, key, inner)


def _is_probability(value: Any) -> bool:
    return isinstance(value, float) and 0 < value <= 1
