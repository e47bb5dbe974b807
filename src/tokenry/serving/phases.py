"""How long the two phases of serving take on a machine.

    T_p(n)      seconds to read n prompt tokens, of all prompts in a batch
    T_t(B, K)   seconds to write one token for each of B requests that hold K cached tokens in all

Measured: piecewise linear through measured medians. Otherwise the roofline, what the machine's
arithmetic or its memory allows, whichever is slower:

    T_p = max(2 P n / F,  W / M)          T_t = max(2 P B / F,  (W + K b) / M)

with P parameters, W bytes of weights, b bytes of cache per token, F floating-point operations and M
bytes of memory traffic per second that are really reached. Reading is bound by arithmetic, writing
by memory: that is why the two may want different machines.

Source: "Splitwise: Efficient generative LLM inference using phase splitting" (arXiv 2311.18677),
whose measured medians for two models on eight-GPU servers are MEASURED. The roofline is ours; the
shares of the peaks that are reached are the ones that those medians imply.
"""

from __future__ import annotations

import re
import statistics
import time
from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol

from tokenry.core.checks import within
from tokenry.core.errors import InputError, ModelError, UnknownNameError


class PhaseModel(Protocol):
    """Seconds of the two phases; both grow with their arguments."""

    def prompt_time(self, tokens: int) -> float: ...

    def token_time(self, batch: int, cached: int) -> float: ...


@dataclass(frozen=True)
class Machine:
    """A server, whole: its accelerators work on one copy of the model together.

    flops, bandwidth: peaks, per second; memory: bytes; power: kW; cost: per hour, in dollars; all
    finite and > 0. compute_share, memory_share: of the peaks that are reached, in (0, 1].
    """

    name: str
    flops: float
    bandwidth: float
    memory: float
    power: float
    cost: float
    compute_share: float = 0.5
    memory_share: float = 0.5

    def __post_init__(self) -> None:
        within(self, "(0, inf)", "flops", "bandwidth", "memory", "power", "cost")
        within(self, "(0, 1]", "compute_share", "memory_share")


MACHINES = {
    machine.name: machine
    for machine in (
        Machine("A100", 8 * 312e12, 8 * 2.0e12, 640e9, 6.5, 17.6, 0.48, 0.30),
        Machine("H100", 8 * 989e12, 8 * 3.35e12, 640e9, 10.2, 38.0, 0.31, 0.25),
        # a cap of half the power costs arithmetic 30 %, memory nothing
        Machine("H100-capped", 8 * 989e12 / 1.3, 8 * 3.35e12, 640e9, 7.14, 38.0, 0.31, 0.25),
        Machine("laptop", 0.2e12, 12e9, 8e9, 0.015, 0.1, 1.0, 1.0),
    )
}
"""Servers of eight GPUs, and two cores of a laptop."""


def machine(name: str) -> Machine:
    if name not in MACHINES:
        raise UnknownNameError("machine", name, MACHINES)
    return MACHINES[name]


@dataclass(frozen=True)
class ServedModel:
    """What serving needs to know of a model: its size and its cache, in bytes."""

    name: str
    parameters: float
    kv_bytes: float
    weight_bytes: float

    @classmethod
    def of_size(cls, size: str | float, dtype_bytes: int = 2) -> ServedModel:
        """A dense decoder of "70B" or 70e9 parameters, its shape guessed: 128 times as wide as
        deep, eight key heads of 128."""
        parameters = parameters_of(size)
        layers = round((parameters / 12 / 128**2) ** (1 / 3)) or 1  # P = 12 L d^2, d = 128 L
        kv_heads = min(8, layers)
        kv = kv_cache_bytes(1, layers, kv_heads, 128, dtype_bytes)
        return cls(f"{parameters / 1e9:g}B", parameters, kv, parameters * dtype_bytes)

    @classmethod
    def from_config(cls, config: Any, dtype_bytes: int = 2, name: str = "") -> ServedModel:
        """Of a transformers configuration; the parameters are counted without making them."""
        import torch
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):
            parameters = AutoModelForCausalLM.from_config(config).num_parameters()
        kv = config_kv_bytes(config, 1, dtype_bytes)
        return cls(name or str(config.model_type), parameters, kv, parameters * dtype_bytes)


def parameters_of(size: str | float) -> float:
    """70e9 of "70B", 1.35e8 of "135M"."""
    if not isinstance(size, str):
        number = float(size)
    else:
        parsed = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*([MBT]?)", size.strip().upper())
        if parsed is None:
            raise InputError(f"a model's size is a number such as 7B, 0.5B or 135M, not {size!r}")
        number = float(parsed[1]) * {"M": 1e6, "B": 1e9, "T": 1e12, "": 1.0}[parsed[2]]
    if not 1e6 <= number <= 1e15:
        raise InputError(f"a model of {number:g} parameters? say 7B or 135M")
    return number


def kv_cache_bytes(
    tokens: int, layers: int, kv_heads: int, head_dim: int, dtype_bytes: int = 2
) -> int:
    """Bytes of keys and values: 2 · tokens · layers · key heads · head dimension · bytes."""
    return 2 * tokens * layers * kv_heads * head_dim * dtype_bytes


def config_kv_bytes(config: Any, tokens: int, dtype_bytes: int = 2) -> int:
    """Bytes of the cache of `tokens` tokens; a sliding layer holds its window at most."""
    text = config.get_text_config(decoder=True)
    heads = text.num_attention_heads
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    window = getattr(text, "sliding_window", None)
    kinds = getattr(text, "layer_types", None) or ["full_attention"] * text.num_hidden_layers
    cached_layers = sum(
        min(tokens, window) if window and kind == "sliding_attention" else tokens for kind in kinds
    )
    return kv_cache_bytes(cached_layers, 1, kv_heads, head_dim, dtype_bytes)


@dataclass(frozen=True)
class RooflinePhases:
    """Both phases of a model on a machine, from the machine's figures."""

    model: ServedModel
    machine: Machine

    def prompt_time(self, tokens: int) -> float:
        return max(self._compute(tokens), self._memory(0))

    def token_time(self, batch: int, cached: int) -> float:
        return max(self._compute(batch), self._memory(cached))

    def _compute(self, tokens: int) -> float:
        peak = self.machine.flops * self.machine.compute_share
        return 2 * self.model.parameters * tokens / peak

    def _memory(self, cached: int) -> float:
        traffic = self.model.weight_bytes + cached * self.model.kv_bytes
        return traffic / (self.machine.bandwidth * self.machine.memory_share)


@dataclass(frozen=True)
class PiecewiseLinear:
    """A line through measured points: level before the first, on along the last piece beyond.

    Medians that fall by noise are lifted to the one before, so that more never costs less.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y) or len(self.x) < 2 or list(self.x) != sorted({*self.x}):
            raise InputError(
                f"a measured curve needs two points or more, in order: {self.x} {self.y}"
            )
        object.__setattr__(self, "y", tuple(accumulate(self.y, max)))

    def __call__(self, x: float) -> float:
        if x <= self.x[0]:
            return self.y[0]
        right = min(bisect_right(self.x, x), len(self.x) - 1)
        left = right - 1
        slope = (self.y[right] - self.y[left]) / (self.x[right] - self.x[left])
        return self.y[left] + slope * (x - self.x[left])


@dataclass(frozen=True)
class MeasuredPhases:
    """Both phases from measured medians: seconds by prompt tokens, and by requests in the batch.

    What the cached tokens cost is in the second curve, for caches as long as those measured.
    """

    prompt: PiecewiseLinear
    token: PiecewiseLinear

    def prompt_time(self, tokens: int) -> float:
        return self.prompt(tokens)

    def token_time(self, batch: int, cached: int) -> float:
        return self.token(batch)

    @classmethod
    def of(cls, prompt: dict[int, float], token: dict[int, float]) -> MeasuredPhases:
        """Of {tokens: seconds} and {batch: seconds}."""
        curves = (
            PiecewiseLinear(tuple(float(n) for n in sorted(c)), tuple(c[n] for n in sorted(c)))
            for c in (prompt, token)
        )
        return cls(*curves)


def published(prompt: str, token: str) -> MeasuredPhases:
    """Medians in milliseconds: 128 to 8192 prompt tokens, batches of 1 to 64."""
    reading = {128 << n: float(ms) / 1000 for n, ms in enumerate(prompt.split())}
    writing = {1 << n: float(ms) / 1000 for n, ms in enumerate(token.split())}
    return MeasuredPhases.of(reading, writing)


MEASURED: dict[str, dict[str, MeasuredPhases]] = {
    "llama2-70b": {
        "A100": published(
            "65.3 66.8 93.0 154.5 274.2 661.2 1549.8", "45.0 44.6 45.8 46.5 50.4 53.0 71.6"
        ),
        "H100": published(
            "58.2 51.7 53.9 77.9 136.8 390.3 844.9", "30.1 30.3 31.8 32.5 34.2 38.6 50.2"
        ),
        "H100-capped": published(
            "75.6 67.2 70.0 101.3 177.8 507.4 1098.4", "30.1 30.3 31.8 32.5 34.2 38.6 50.2"
        ),
    },
    "bloom-176b": {
        "A100": published(
            "79.7 99.2 174.4 289.2 540.4 1348.2 3593.2", "49.0 50.0 51.0 53.0 57.3 65.4 96.6"
        ),
        "H100": published(
            "48.3 51.2 76.1 132.6 253.1 688.7 1535.4", "36.1 36.9 38.1 38.1 40.6 45.8 63.8"
        ),
        "H100-capped": published(
            "62.8 66.5 99.0 172.4 329.0 895.3 1996.0", "36.1 36.9 38.1 38.1 40.6 45.8 63.8"
        ),
    },
}
"""Phases measured in the paper's study, in 16 bits on eight GPUs."""

SHAPES = {  # layers, key heads, head dimension; the published model with one key head per query
    "llama2-70b": ServedModel("llama2-70b", 69e9, kv_cache_bytes(1, 80, 8, 128), 138e9),
    "bloom-176b": ServedModel("bloom-176b", 176e9, kv_cache_bytes(1, 70, 112, 128), 352e9),
}


def phases_of(model: ServedModel, machine: Machine) -> PhaseModel:
    """The published medians where there are some for this pair, else the roofline."""
    known = MEASURED.get(model.name, {})
    return known.get(machine.name) or RooflinePhases(model, machine)


def cache_capacity(model: ServedModel, machine: Machine) -> int:
    """Tokens whose keys and values fit beside the weights. Raises InputError where none do."""
    capacity = int((0.9 * machine.memory - model.weight_bytes) / model.kv_bytes)
    if capacity < 1:
        raise InputError(
            f"{model.name} needs {model.weight_bytes / 1e9:.0f} GB for its weights, and a machine "
            f"{machine.name} has {machine.memory / 1e9:.0f} GB: take a larger machine"
        )
    return capacity


def measure_phases(
    model: Any,
    prompts: tuple[int, ...] = (32, 64, 128, 256, 512),
    batches: tuple[int, ...] = (1, 2, 4, 8),
    context: int = 128,
    repeats: int = 3,
) -> MeasuredPhases:
    """Both phases of a loaded model on this machine: medians of `repeats` runs.

    Steps are timed with `context` cached tokens a request.
    """
    import torch

    from tokenry.model import compat

    if min(*prompts, *batches, context, repeats) < 1:
        raise InputError("prompts, batches, context and repeats must be positive")
    window = compat.window(model)
    longest = max(*prompts, context + repeats + 1)
    if window is not None and longest > window:
        raise ModelError(f"{longest} tokens do not fit the model's window of {window}")
    device = next(model.parameters()).device
    vocabulary = model.config.get_text_config().vocab_size

    def seconds(call: Any) -> float:
        synchronize(device)
        start = time.perf_counter()
        call()
        synchronize(device)
        return time.perf_counter() - start

    def ids(rows: int, length: int) -> Any:
        return torch.randint(vocabulary, (rows, length), generator=generator).to(device)

    generator = torch.Generator().manual_seed(0)
    reading, writing = {}, {}
    with torch.inference_mode():
        model(ids(1, min(prompts)))  # the first pass pays for what is made once
        for tokens in prompts:
            prompt = ids(1, tokens)
            times = [seconds(lambda p=prompt: model(p, logits_to_keep=1)) for _ in range(repeats)]
            reading[tokens] = statistics.median(times)
        for batch in batches:
            cache = model(ids(batch, context), logits_to_keep=1, use_cache=True).past_key_values
            step = ids(batch, 1)
            times = [
                seconds(lambda s=step, c=cache: model(s, past_key_values=c, use_cache=True))
                for _ in range(repeats)
            ]
            writing[batch] = statistics.median(times)
    return MeasuredPhases.of(reading, writing)


def synchronize(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
