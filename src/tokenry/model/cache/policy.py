"""What cache policies share: the role, the cache they build, and budgets.

A policy says what a layer does with its keys and values; the cache is a list of such layers. Only
full-attention layers are a policy's: sliding ones, as in Gemma 3, keep their window, a bound
already.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, DynamicLayer

from tokenry.core.errors import InputError, ModelError
from tokenry.core.registry import Role
from tokenry.model.attention.interface import observe_attention
from tokenry.model.attention.observed_layer import ObservedLayer
from tokenry.model.compat import is_recurrent, layer_kinds, unwrap


class CachePolicy(Protocol):
    """The role: which keys and values a query attends to, S_t within 1..t, and which are forgotten.

    The hyper-parameters are its fields; a budget is an int, of tokens, or a float, a share of the
    prompt.
    """

    def cache(self, model: Any) -> DynamicCache:
        """A new cache for one `generate`; switches the model to the attention that it needs."""
        ...

    def layer(self) -> ObservedLayer:
        """A new layer under this policy."""
        ...


class Example(NamedTuple):
    """A policy as its contract test takes it: with budgets that no text of the test exhausts, with
    few
    tokens, and with shares of the prompt.

    Attributes:
        kept: the tokens that the tight one keeps, if it forgets any.
    """

    ample: CachePolicy
    tight: CachePolicy
    shares: CachePolicy
    kept: int | None = None


cache_policy = Role("cache policy", CachePolicy, ("tokenry.model.cache",))


class PolicyCache(DynamicCache):
    """A `DynamicCache` whose full-attention layers are `layer(number)`."""

    def __init__(self, config: Any, layer: Callable[[int], ObservedLayer]):
        super().__init__(config=config)
        self.layers = observed_layers(self.layers, layer)

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens (a negative count), in every layer or in none."""
        for layer in self.layers:
            if tokens_to_remove and not layer.is_croppable:
                layer.crop(tokens_to_remove)  # raises, before another layer has forgotten
        super().crop(tokens_to_remove)


def cache_under(policy: CachePolicy, model: Any) -> PolicyCache:
    """A cache with one policy for all layers, and the model switched to show it its attention."""
    return observed_cache(model, lambda number: policy.layer())


def observed_cache(model: Any, layer: Callable[[int], ObservedLayer]) -> PolicyCache:
    """A `PolicyCache` for the model, which is switched to show its attention; where there can be
    none the model stays as it was."""
    if is_recurrent(model) and not layer_kinds(model):
        raise ModelError(
            f"{type(unwrap(model)).__name__} keeps a recurrent state and no keys: there is nothing "
            "for a cache policy to bound"
        )
    cache = PolicyCache(model.config, layer)
    observe_attention(model)
    return cache


def observed_layers(layers: list[Any], layer: Callable[[int], ObservedLayer]) -> list[Any]:
    """`layers` with every plain full-attention layer replaced by `layer(its number)`."""
    kept = [
        layer(number) if type(old) is DynamicLayer else old for number, old in enumerate(layers)
    ]
    if kept == layers:
        names = ", ".join(sorted({type(layer).__name__ for layer in layers})) or "none"
        raise ModelError(f"the model has no full-attention layer to bound (its layers: {names})")
    return kept


def cache_bytes(cache: DynamicCache) -> int:
    """Bytes of all tensors that a cache holds: keys, values, and the policies' own."""
    sizes: dict[int, int] = {}

    def count(value: Any) -> None:
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, list | tuple):
            for part in value:
                count(part)
        elif hasattr(value, "__dict__"):
            for part in vars(value).values():
                count(part)

    count(list(cache.layers))
    return sum(sizes.values())


def check_budget(**shares: int | float) -> None:
    """InputError unless each is a count of tokens or a share of the prompt."""
    for name, share in shares.items():
        if not _is_budget(share):
            raise InputError(
                f"{name}={share!r} is neither a count of tokens (int >= 0) nor a share (0.0-1.0)"
            )


def check_size(size: int | float) -> None:
    """InputError unless `size` is a whole budget."""
    if not _is_budget(size) or not size:
        raise InputError(
            f"a cache of size {size!r}: give a count of tokens (int >= 1) or a share of the prompt "
            "(above 0.0, at most 1.0)"
        )


def _is_budget(share: Any) -> bool:
    if isinstance(share, float):
        return 0 <= share <= 1
    return isinstance(share, int) and not isinstance(share, bool) and share >= 0


def tokens(share: int | float, length: Tensor) -> Tensor:
    """A budget in tokens: an int as it is, a float as that share of `length` [B]."""
    if isinstance(share, int):
        return torch.full_like(length, share)
    # 0.29 * 100 is 28.999...: a hair is added before rounding down
    return (share * length.double() + 1e-9).floor().long().clamp(min=int(share > 0))
