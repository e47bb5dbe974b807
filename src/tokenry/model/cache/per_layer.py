"""Different policies for different layers, and for different key heads of a layer.

    PerLayer({0: Full(), range(1, 30): TokenSelect.of_size(1024)})
    PerHead({0: Full(), (1, 2): H2O(heavy=32, recent=32)})
    PerLayer({range(4): Full()}, default=PerHead({0: Full()}, default=H2O()))

Layers differ in how widely they look, and heads too: a few need the whole text, others the last
tokens. A budget per head is a policy per head. The query heads of a key head go with it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from tokenry.core.errors import InputError
from tokenry.model.attention.masks import StepMask
from tokenry.model.attention.observed_layer import ObservedLayer
from tokenry.model.cache.full import Full
from tokenry.model.cache.policy import CachePolicy, PolicyCache, cache_under, observed_cache

PolicyByNumber = Mapping[int | range | tuple[int, ...], CachePolicy]
"""Which policy goes where: one number, a range or several; negative ones count from the end."""


@dataclass(frozen=True)
class PerLayer:
    """A policy for each full-attention layer: `PerLayer(layers).cache(model)`.

    Sliding layers keep their window: naming one is an InputError.

    Args:
        layers: numbers of layers to policies, as in `model.config.layer_types`.
        default: that of the layers not named.
    """

    layers: PolicyByNumber
    default: CachePolicy = field(default_factory=Full)

    def cache(self, model: Any) -> PolicyCache:
        config = model.config.get_text_config(decoder=True)
        chosen = resolve(self.layers, config.num_hidden_layers, "layer")
        used: set[int] = set()

        def layer(number: int) -> ObservedLayer:
            used.add(number)
            return chosen.get(number, self.default).layer()

        PolicyCache(model.config, layer)  # which asks for the layers that there are
        if sliding := sorted(set(chosen) - used):
            raise InputError(
                f"layers {sliding} do not have full attention, so a policy has nothing to choose "
                f"there; those that have: {sorted(used)}"
            )
        return observed_cache(model, layer)


@dataclass(frozen=True)
class PerHead:
    """A policy for each key head, the same in all layers: `PerHead(heads).cache(model)`.

    Heads named together share what their policy shares, such as the selection of TokenSelect.

    Args:
        heads: numbers of key heads (`model.config.num_key_value_heads`) to policies.
        default: that of the heads not named.
    """

    heads: PolicyByNumber
    default: CachePolicy = field(default_factory=Full)

    def cache(self, model: Any) -> PolicyCache:
        count = getattr(model.config.get_text_config(decoder=True), "num_key_value_heads", None)
        if count is not None:  # else the keys themselves will show how many there are
            resolve(self.heads, count, "head")
        return cache_under(self, model)

    def layer(self) -> "HeadsLayer":
        return HeadsLayer(self)


def resolve(policies: PolicyByNumber, count: int, what: str) -> dict[int, CachePolicy]:
    """The policy of each number that is named."""
    policy_of: dict[int, CachePolicy] = {}
    for numbers, policy in policies.items():
        for number in (numbers,) if isinstance(numbers, int) else numbers:
            if not -count <= number < count:
                raise InputError(f"there is no {what} {number}: they are 0 to {count - 1}")
            if number % count in policy_of:
                raise InputError(f"{what} {number % count} is given two policies")
            policy_of[number % count] = policy
    return policy_of


class HeadsLayer(ObservedLayer):
    """One layer whose key heads are parted among layers of their own."""

    def __init__(self, policy: PerHead):
        super().__init__()
        self.policy = policy
        self.parts: list[tuple[list[int], ObservedLayer]] = []

    def store(self, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
        if not self.parts:
            self._part(key_states.shape[1])
            self.is_initialized = True
        for heads, layer in self.parts:
            layer.update(key_states[:, heads], value_states[:, heads])
        return key_states, value_states

    def _part(self, count: int) -> None:
        chosen = resolve(self.policy.heads, count, "key head")
        for numbers, policy in self.policy.heads.items():
            heads = [numbers] if isinstance(numbers, int) else list(numbers)
            if heads:
                self.parts.append(([head % count for head in heads], policy.layer()))
        if rest := [head for head in range(count) if head not in chosen]:
            self.parts.append((rest, self.policy.default.layer()))

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, new_tokens: StepMask, **options: Any
    ) -> Tensor:
        B, H, q, _ = query.shape
        group = H // sum(len(heads) for heads, _ in self.parts)
        output = query.new_empty(B, q, H, value.shape[-1])
        for heads, layer in self.parts:
            queries = [head * group + one for head in heads for one in range(group)]
            assert layer.keys is not None
            assert layer.values is not None
            output[:, :, queries] = layer.attend(
                query[:, queries], layer.keys, layer.values, new_tokens, **options
            )
            layer.waiting = False
        return output

    @property
    def is_croppable(self) -> bool:
        policies = (*self.policy.heads.values(), self.policy.default)
        layers = [layer for _, layer in self.parts] or [policy.layer() for policy in policies]
        return all(layer.is_croppable for layer in layers)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.seen + query_length, 0

    def crop(self, tokens_to_remove: int) -> None:
        if not self.is_croppable:
            super().crop(tokens_to_remove)
        for _, layer in self.parts:
            layer.crop(tokens_to_remove)
        self.seen = max(0, self.seen + tokens_to_remove)

    def keep_columns(self, length: int, index: Tensor) -> None:
        for _, layer in self.parts:
            layer.keep_columns(length, index)
        self.seen = length + index.shape[1]

    def copy(self) -> "HeadsLayer":
        twin = super().copy()
        assert isinstance(twin, HeadsLayer)
        twin.parts = [(heads, layer.copy()) for heads, layer in self.parts]
        return twin

    def reset(self) -> None:
        self.parts = []
        self.is_initialized = False
        self.seen, self.waiting = 0, False

    def each_row(self, change: Callable[[Tensor], Tensor]) -> None:
        for _, layer in self.parts:
            layer.each_row(change)
