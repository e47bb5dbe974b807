"""Averaging checkpoints: a soup of models fine-tuned from one start.

    soup(state_dicts, weights)             theta = sum_i w_i theta_i, tensor by tensor
    soup_models(models, weights)           the same as a frozen model
    interpolation_curve(a, b, metric)      metric along theta(t) = (1 - t) a + t b

Sums run in float64, one tensor at a time, and are rounded once to the dtype of the first model:
equal models give that model to the last bit. Tensors that are tied in the models are averaged once
and stay tied. Only models of the same architecture, sizes and vocabulary can be averaged, and only
runs that began at the same pretrained weights *should* be: the average of unrelated models is no
model. LoRA adapters are averaged merged (`merge_and_unload`): the mean of products B A is not the
product of the means.

Sources: Model soups: averaging weights of multiple fine-tuned models improves accuracy without
increasing inference time (arXiv 2203.05482); the soup as a reference: SALSA (arXiv 2411.01798).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tokenry.core.errors import InputError, ModelError, ShapeError, VocabularyError


@torch.no_grad()
def soup(
    state_dicts: Sequence[Mapping[str, Tensor]], weights: Sequence[float] | None = None
) -> dict[str, Tensor]:
    """The weighted average of state dicts with the same names and shapes.

    Whole-number and bool buffers are copied from the first and must agree. Entries that share
    memory in every state dict share it in the result too.

    Args:
        weights: one per state dict, summing to 1 (default: equal).
    """
    shares = _shares(len(state_dicts), weights)
    _check_alike(state_dicts)
    made: dict[tuple[Any, ...], Tensor] = {}
    result = {}
    for name in state_dicts[0]:
        tensors = [state[name] for state in state_dicts]
        key = tuple(_memory(tensor) for tensor in tensors)
        if key not in made:
            made[key] = _average(name, tensors, shares)
        result[name] = made[key]
    return result


def soup_models(models: Sequence[Any], weights: Sequence[float] | None = None) -> Any:
    """A frozen model whose weights are the weighted average of the given ones'.

    The models are left as they are; the result is in evaluation mode and takes no gradients. Where
    some of them tie weights that others have apart, the result has them apart.
    """
    if not models:
        raise InputError("a soup needs at least one model")
    for number, model in enumerate(models):
        _check_model(models[0], model, number)
    states = [model.state_dict() for model in models]
    averaged = soup(states, weights)
    # loaded into a model that ties more, the last of the tied entries would overwrite the others
    wanted = _shared(averaged)
    alike = [m for m, state in zip(models, states, strict=True) if _shared(state) == wanted]
    if not alike:
        raise ModelError(
            "the models tie different weights, and none of them ties only those that all of them "
            "tie: untie them before they are averaged"
        )
    blended = copy.deepcopy(alike[0])
    blended.load_state_dict(averaged)
    return blended.requires_grad_(False).eval()


def interpolation_curve(
    model_a: Any, model_b: Any, metric: Callable[[Any], float], n: int = 11
) -> list[tuple[float, float]]:
    """(t, metric) at n models on the line from model_a (t = 0) to model_b (t = 1)."""
    if n < 2:
        raise InputError(f"a line needs at least its 2 ends, got n={n}")
    line = [step / (n - 1) for step in range(n)]
    return [(t, float(metric(soup_models([model_a, model_b], [1 - t, t])))) for t in line]


def _average(name: str, tensors: Sequence[Tensor], shares: list[float]) -> Tensor:
    first = tensors[0]
    if not first.is_floating_point():
        if not all(torch.equal(first, other.to(first.device)) for other in tensors[1:]):
            raise ModelError(f"{name} holds whole numbers that differ: it cannot be averaged")
        return first.clone()
    total = torch.zeros(first.shape, dtype=torch.float64)
    for tensor, share in zip(tensors, shares, strict=True):
        total += share * tensor.to("cpu", torch.float64)  # not every device has float64
    return total.to(first.dtype).to(first.device)


def _shares(count: int, weights: Sequence[float] | None) -> list[float]:
    if not count:
        raise InputError("a soup needs at least one state dict")
    shares = [1.0 / count] * count if weights is None else [float(weight) for weight in weights]
    if len(shares) != count:
        raise InputError(f"{len(shares)} weights for {count} models: give one each")
    if not abs(math.fsum(shares) - 1) < 1e-6:
        raise InputError(f"the weights must sum to 1, got {math.fsum(shares):g}")
    return shares


def _check_alike(states: Sequence[Mapping[str, Tensor]]) -> None:
    first = states[0]
    for number, state in enumerate(states[1:], 1):
        if odd := sorted(set(first) ^ set(state)):
            raise ModelError(
                f"models 0 and {number} are of different architectures: only one of them has "
                f"{odd[0]}" + (f" and {len(odd) - 1} more" if len(odd) > 1 else "")
            )
        for name, tensor in first.items():
            if tensor.shape != state[name].shape:
                raise ShapeError(
                    f"{name} is {[*tensor.shape]} in model 0 and {[*state[name].shape]} in model "
                    f"{number}: only models of the same sizes can be averaged"
                )


def _check_model(first: Any, model: Any, number: int) -> None:
    if hasattr(model, "peft_config"):
        raise ModelError(
            f"model {number} carries a LoRA adapter: average merged weights, "
            "model.merge_and_unload(), not the adapter's factors"
        )
    mine, other = (getattr(getattr(m, "config", None), "vocab_size", None) for m in (first, model))
    if mine != other:
        raise VocabularyError(
            f"model 0 has {mine} tokens and model {number} {other}: models of different "
            "tokenizers cannot be averaged"
        )


def _shared(state: Mapping[str, Tensor]) -> set[frozenset[str]]:
    """The names of a state dict, grouped by the memory that they share."""
    groups: dict[tuple[Any, ...], set[str]] = {}
    for name, tensor in state.items():
        groups.setdefault(_memory(tensor), set()).add(name)
    return {frozenset(names) for names in groups.values()}


def _memory(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride()
