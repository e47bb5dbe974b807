"""SkipDecode: how many layers a token gets depends on its position alone, and falls along the text.

With N layers, between M and m of them at the positions t = 0 .. T - 1, and w warm-up layers:

    b(t) = round(M - (M - m) t / (T - 1))                       the budget; m from T on
    E(t) = {0, .., w - 1} + {N - (b(t) - w), .., N - 1}         the layers that run

The first w layers always run, then the state jumps to the top b - w. E(t + 1) is a subset of E(t),
so whenever a token attends in a layer, every earlier token has left its key and value there; and
the whole batch shares the schedule by column, so batching and left padding stay as they are. The
prompt runs in one pass with M layers. The caches of the layers get different lengths: `RaggedCache`
counts columns by the first layer, which always runs.

    attached = SkipDecode(max_layers=30, min_layers=10, length=128).attach(model)
    model.generate(**inputs, past_key_values=attached.cache(), max_new_tokens=128)

Source: SkipDecode: Autoregressive Skip Decoding with Batching and Caching for Efficient LLM
Inference (arXiv 2307.02628). The formulas are reconstructed from the description.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import wraps
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from tokenry.core.checks import in_range, one_of, within
from tokenry.core.errors import InputError, ModelError
from tokenry.model.adaptive.wrapping import (
    Attached,
    Example,
    Wrapper,
    attach,
    base_model,
    compute_router,
    decoder_layers,
    head_flops,
    layer_flops,
)


def linear_layer_schedule(length: int, max_layers: int, min_layers: int) -> list[int]:
    """The budgets b(0) .. b(T - 1); halves are rounded up."""
    if length < 1 or not 1 <= min_layers <= max_layers:
        raise InputError(
            f"length ({length}) must be at least 1 and 1 <= min_layers ({min_layers}) <= "
            f"max_layers ({max_layers})"
        )
    span, steps = max_layers - min_layers, max(length - 1, 1)
    return [max_layers + (steps - 2 * span * t) // (2 * steps) for t in range(length)]


def executed_layers(budget: int, n_layers: int, warmup: int = 1) -> list[int]:
    """E for one budget: the first `warmup` layers and the top `budget - warmup`."""
    if warmup < 1 or not warmup < budget <= n_layers:
        raise InputError(
            f"a budget of {budget} layers needs {warmup} warm-up layers (at least 1), at least one "
            f"more on top, and no more than the model's {n_layers}"
        )
    return [*range(warmup), *range(n_layers - (budget - warmup), n_layers)]


def average_layers(schedule: Sequence[int]) -> float:
    """Layers per token, on average over the positions."""
    return sum(schedule) / len(schedule)


def speedup_estimate(schedule: Sequence[int], n_layers: int) -> float:
    """N over the average number of layers: what is gained in the layers alone."""
    return n_layers / average_layers(schedule)


def layers_for_speedup(n_layers: int, speedup: float, min_layers: int = 2) -> tuple[int, int]:
    """(M, m) with (M + m) / 2 = N / speedup, up to rounding: m as given, or more where M would
    exceed N."""
    both = round(2 * n_layers / speedup) if speedup > 0 else 0
    top = min(n_layers, both - min_layers)
    if speedup < 1 or top < min_layers:
        raise InputError(
            f"{n_layers} layers cannot be run {speedup} times as fast with at least {min_layers}: "
            f"choose a speed-up from 1 to {n_layers / min_layers:.3g}"
        )
    return top, both - top


@compute_router("skipdecode", paper=39, examples=lambda: _examples())
@dataclass(frozen=True)
class SkipDecode:
    """A schedule of depth by position.

    Args:
        max_layers: M.
        min_layers: m.
        length: T, in tokens.
        warmup: w; the paper found 1 best.
        count: what t counts: "generated" columns after the prompt, or "all" columns (then
            generation starts at the budget of its first column).
        budgets: b(0), b(1), .. instead of the line; they must not increase, since a layer that came
            back would miss the keys of the tokens before.
    """

    max_layers: int
    min_layers: int
    length: int
    warmup: int = 1
    count: str = "generated"
    budgets: Sequence[int] | None = None

    key: ClassVar[str] = "skipdecode"

    def __post_init__(self) -> None:
        one_of("SkipDecode.count", self.count, ("generated", "all"))
        within(self, "[1, inf)", "max_layers", "min_layers", "length", "warmup", integer=True)
        for t, budget in enumerate(self.budgets or ()):
            in_range(f"SkipDecode.budgets[{t}]", budget, "[1, inf)", integer=True)
        schedule = self.schedule()
        for t, (before, after) in enumerate(itertools.pairwise(schedule), start=1):
            if after > before:
                raise InputError(
                    f"the budget rises from {before} to {after} at position {t}: the layers that "
                    "come back would miss the keys and values of earlier tokens"
                )
        if schedule[0] > self.max_layers:
            raise InputError(f"budgets start at {schedule[0]}, above max_layers={self.max_layers}")
        executed_layers(min(schedule), max(schedule), self.warmup)

    def schedule(self) -> list[int]:
        """b(t), t = 0 .. T - 1."""
        if self.budgets is not None:
            if not self.budgets:
                raise InputError("budgets is empty")
            return list(self.budgets)
        return linear_layer_schedule(self.length, self.max_layers, self.min_layers)

    def attach(self, model: Any) -> AttachedSkipDecode:
        """Change `model` in place; the last state of a skipped layer is that of the layer before.
        `output_hidden_states` then lists the states of what ran."""
        layers = decoder_layers(model)
        executed_layers(self.max_layers, len(layers), self.warmup)
        wrapped = [
            (layers, str(number), SkippableLayer(layer, number, len(layers), self))
            for number, layer in enumerate(layers)
        ]
        attached = attach(model, self, wrapped, AttachedSkipDecode)
        attached.watch_generation()
        return attached


class AttachedSkipDecode(Attached):
    """SkipDecode on a model. A forward without a cache runs every column at its depth at once, as
    training on the schedule wants it; `model(ids, prompt_columns=n)` says how many columns are
    prompt (0 if it does not). `generate` without a cache says it by itself."""

    def watch_generation(self) -> None:
        """Without a cache, `generate` reads the whole text in every step: the layers are told how
        much of it is the prompt, which the first step reads."""
        prompt = 0

        def watched(prepare: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
            @wraps(prepare)  # transformers reads its signature
            def with_prompt(*args: Any, **options: Any) -> dict[str, Any]:
                nonlocal prompt
                inputs = prepare(*args, **options)
                if inputs.get("past_key_values") is None:
                    if options.get("is_first_iteration"):
                        read = inputs.get("inputs_embeds")
                        prompt = (inputs["input_ids"] if read is None else read).shape[1]
                    inputs.setdefault("prompt_columns", prompt)
                return inputs

            return with_prompt

        for owner, name in self._preparing():
            setattr(owner, name, watched(getattr(owner, name)))

    def remove(self) -> None:
        super().remove()
        for owner, name in self._preparing():
            vars(owner).pop(name, None)

    def _preparing(self) -> list[tuple[Any, str]]:
        """What prepares the inputs of a step. (PEFT keeps the model's own, and calls it.)"""
        methods = [(base_model(self.model), "prepare_inputs_for_generation")]
        if hasattr(self.model, "base_model_prepare_inputs_for_generation"):
            methods.append((self.model, "base_model_prepare_inputs_for_generation"))
        return methods

    def cache(self, prompt_columns: int | None = None) -> RaggedCache:
        """A cache for one generation.

        Args:
            prompt_columns: how many columns, padding included, are prompt; by default those of the
                first forward.
        """
        return RaggedCache(base_model(self.model).config, prompt_columns)

    def flops_per_token(self, prompt: int, new: int) -> tuple[float, float]:
        """Average FLOPs of a generated token, (with the schedule, with all layers); choosing the
        layers costs none."""
        depths = [wrapper.depth for wrapper in self.wrappers(SkippableLayer)]
        cost = [layer_flops(self.model, number, prompt + new // 2) for number in range(len(depths))]
        share = [
            (min(depth.columns(prompt), prompt + new) - min(depth.columns(prompt), prompt)) / new
            for depth in depths
        ]
        head = head_flops(self.model)
        scheduled = sum(part * flops for part, flops in zip(share, cost, strict=True))
        return scheduled + head, sum(cost) + head


@dataclass(frozen=True)
class Depth:
    """For how many columns one layer runs.

    Attributes:
        in_prompt: whether it runs in the prompt at all.
        scheduled: how many t it runs for; above any length if it never stops.
    """

    in_prompt: bool
    scheduled: int
    count: str

    @classmethod
    def of(cls, number: int, n_layers: int, method: SkipDecode) -> Depth:
        forever = 2**62
        if number < method.warmup:
            return cls(True, forever, method.count)
        needed = n_layers - number + method.warmup  # the smallest budget that includes the layer
        schedule = method.schedule()
        runs = sum(budget >= needed for budget in schedule)
        if runs == len(schedule):
            runs = forever
        return cls(method.max_layers >= needed, runs, method.count)

    def columns(self, prompt: int) -> int:
        """The layer runs for columns 0 .. columns - 1 of a text with a prompt this long."""
        if self.count == "generated":
            return prompt + self.scheduled if self.in_prompt else 0
        return max(prompt if self.in_prompt else 0, self.scheduled)


class RaggedCache(DynamicCache):
    """A `DynamicCache` whose layers hold different numbers of columns.

    Lengths, offsets and mask sizes are those of the first layer, which has seen every column;
    a layer that was skipped is asked about only in order to build a mask for others of its kind.
    """

    def __init__(self, config: Any, prompt_columns: int | None = None):
        super().__init__(config=config)
        self.given = self.prompt = prompt_columns

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return super().get_seq_length(0)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        layer: Any = self.layers[layer_idx]
        columns = self.get_seq_length()
        if hasattr(layer, "cumulative_length"):  # a sliding window
            layer = copy.copy(layer)
            layer.cumulative_length = columns
            return layer.get_mask_sizes(query_length)
        return columns + query_length, 0

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove > 0:
            raise InputError(f"crop takes minus the number of columns, got {tokens_to_remove}")
        columns = max(self.get_seq_length() + tokens_to_remove, 0)
        layers: Any = self.layers
        for layer in layers:
            layer.crop(-max(layer.get_seq_length() - columns, 0))
        if not columns:
            self.prompt = self.given

    def reset(self) -> None:
        super().reset()
        self.prompt = self.given


class SkippableLayer(Wrapper):
    """A decoder layer that runs for the first columns of a text only."""

    def __init__(self, base: nn.Module, number: int, n_layers: int, method: SkipDecode):
        super().__init__(base)
        self.number, self.depth = number, Depth.of(number, n_layers, method)

    def forward(
        self,
        hidden_states: Tensor,
        *args: Any,
        past_key_values: Any = None,
        prompt_columns: int | None = None,
        **rest: Any,
    ) -> Tensor:
        new = hidden_states.shape[1]
        start, prompt = 0, prompt_columns or 0
        if isinstance(past_key_values, RaggedCache):
            if self.number == 0 and past_key_values.prompt is None:
                past_key_values.prompt = new if prompt_columns is None else prompt_columns
            prompt = past_key_values.prompt or 0
            # in this pass the first layer has added the new columns already
            start = past_key_values.get_seq_length() - (new if self.number else 0)
        elif past_key_values is not None and not self.number and past_key_values.get_seq_length():
            raise ModelError(
                f"SkipDecode cannot go on with a {type(past_key_values).__name__}, whose layers "
                "are of one length: pass past_key_values=attached.cache() to generate or forward"
            )
        runs = min(max(self.depth.columns(prompt) - start, 0), new)
        if not runs:
            return hidden_states
        if runs < new:
            rest = first_columns(rest, runs, new, self)
        output = self.base(hidden_states[:, :runs], *args, past_key_values=past_key_values, **rest)
        if not isinstance(output, Tensor):
            raise ModelError(
                f"layer {self.number}, a {type(self.base).__name__}, returns a "
                f"{type(output).__name__}; SkipDecode needs layers that return their states"
            )
        return output if runs == new else torch.cat([output, hidden_states[:, runs:]], dim=1)


def first_columns(arguments: dict[str, Any], runs: int, new: int, layer: Any) -> dict[str, Any]:
    """The arguments of a decoder layer for the first `runs` of its `new` columns."""
    cut = dict(arguments)
    mask = cut.get("attention_mask")
    if isinstance(mask, Tensor) and mask.ndim in (2, 4):
        keys = mask.shape[-1] - (new - runs)
        cut["attention_mask"] = mask[:, :keys] if mask.ndim == 2 else mask[..., :runs, :keys]
    elif mask is not None:
        raise ModelError(
            f"layer {layer.number} was given a {type(mask).__name__} as its mask, which cannot be "
            "cut: use the attention implementation 'sdpa' or 'eager'"
        )
    if cut.get("position_embeddings") is not None:
        cut["position_embeddings"] = tuple(part[:, :runs] for part in cut["position_embeddings"])
    for name in ("position_ids", "cache_position"):
        if cut.get(name) is not None:
            cut[name] = cut[name][..., :runs]
    return cut


def _examples() -> list[Example]:
    return [Example(SkipDecode(3, 2, 6), [nullcontext])]
