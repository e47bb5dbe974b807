"""Latency targets, and how far a simulated cluster is from them.

A target is a slow-down against the same request alone on a reference machine,

    alone(p, g):  ttft = T_p(p),  tbt = T_t(1, p),  e2e = T_p(p) + (g - 1) T_t(1, p)

that half, 90 % and 99 % of the requests may have at most; or a limit in seconds. The load of a
cluster is its worst measured-to-allowed ratio over all targets: at most 1 meets them.

Source: the targets of "Splitwise" (arXiv 2311.18677).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tokenry.core.errors import InputError, UnknownNameError
from tokenry.serving.phases import PhaseModel
from tokenry.serving.policies import Policy
from tokenry.serving.simulation import Batching, Cluster, Served, simulate
from tokenry.serving.trace import Trace

PERCENTILES = (50, 90, 99)
METRICS = ("ttft", "tbt", "e2e")

Limits = tuple[float, ...]


@dataclass(frozen=True)
class SLO:
    """Latency targets: what 50, 90 and 99 % of the requests may have at most.

    slowdown: times the latency of the same request alone on the reference machine; seconds: limits
    in seconds. tbt is the mean time between a request's tokens.
    """

    slowdown: Mapping[str, Limits] = field(
        default_factory=lambda: {
            "ttft": (2.0, 3.0, 6.0),
            "tbt": (1.25, 1.5, 5.0),
            "e2e": (1.25, 1.5, 5.0),
        }
    )
    seconds: Mapping[str, Limits] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.slowdown and not self.seconds:
            raise InputError("latency targets without a target: give slowdown or seconds")
        for limits in (self.slowdown, self.seconds):
            for metric, values in limits.items():
                if metric not in METRICS:
                    raise UnknownNameError("latency", metric, METRICS)
                good = len(values) == 3 and all(isinstance(v, int | float) for v in values)
                if not good or min(values) <= 0 or list(values) != sorted(values):
                    raise InputError(
                        f"the targets of {metric} must be three rising positive numbers, for 50, "
                        f"90 and 99 % of the requests, not {list(values)}"
                    )

    @classmethod
    def read(cls, path: str | Path) -> SLO:
        """Of a JSON file: {"slowdown": {"ttft": [2, 3, 6], ...}, "seconds": {...}}."""
        try:
            given = json.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"no such file: {path}") from None
        except ValueError as error:
            raise InputError(f"{path} is not JSON: {error}") from None
        shape = '{"slowdown": {"ttft": [2, 3, 6], ...}, "seconds": {"e2e": [5, 10, 20], ...}}'
        if not isinstance(given, dict) or not set(given) <= {"slowdown", "seconds"}:
            raise InputError(f"{path} must look like {shape}")
        try:
            limits = {
                kind: {metric: tuple(values) for metric, values in given.get(kind, {}).items()}
                for kind in ("slowdown", "seconds")
            }
        except (TypeError, AttributeError):
            raise InputError(f"{path} must look like {shape}") from None
        return cls(**limits)


@dataclass(frozen=True)
class Latencies:
    """What the requests of a run had: [3] by percentile, in seconds and as slow-downs."""

    seconds: dict[str, np.ndarray]
    slowdown: dict[str, np.ndarray]

    def load(self, slo: SLO) -> float:
        """The worst ratio of measured to allowed."""
        return max(ratio for ratio, _ in self.ratios(slo))

    def worst(self, slo: SLO) -> str:
        """The target with that ratio, in words."""
        return max(self.ratios(slo))[1]

    def ratios(self, slo: SLO) -> Iterator[tuple[float, str]]:
        kinds = ((slo.slowdown, self.slowdown, "x"), (slo.seconds, self.seconds, " s"))
        for limits, measured, unit in kinds:
            for metric, values in limits.items():
                for percentile, limit, value in zip(
                    PERCENTILES, values, measured[metric], strict=True
                ):
                    ratio = float(value / limit) if np.isfinite(value) else 0.0
                    words = (
                        f"{metric} of {percentile} %: {value:.3g}{unit}, at most {limit:g}{unit}"
                    )
                    yield ratio, words


def latencies(served: Served, reference: PhaseModel, warm_up: float = 0.1) -> Latencies:
    """Percentiles over the requests after the first `warm_up` share, which met an empty cluster."""
    kept = slice(int(warm_up * len(served.trace)), None)
    seconds = {"ttft": served.ttft, "tbt": served.tbt_mean, "e2e": served.e2e}
    return against(seconds, alone_on(reference, reference, served.trace), kept)


def against(
    seconds: dict[str, np.ndarray], alone: dict[str, np.ndarray], kept: slice = slice(None)
) -> Latencies:
    slowdown = {metric: values / alone[metric] for metric, values in seconds.items()}
    return Latencies(percentiles(seconds, kept), percentiles(slowdown, kept))


def percentiles(values: dict[str, np.ndarray], kept: slice) -> dict[str, np.ndarray]:
    """[3] of each; NaN where no request has such a latency (answers of one token have no tbt)."""
    percentiles = {}
    for metric, column in values.items():
        real = column[kept][np.isfinite(column[kept])]
        percentiles[metric] = np.percentile(real, PERCENTILES) if len(real) else np.full(3, np.nan)
    return percentiles


def alone_on(
    reader: PhaseModel,
    writer: PhaseModel,
    trace: Trace,
    delay: Callable[[int], float] | None = None,
) -> dict[str, np.ndarray]:
    """The latencies of every request of the trace with the machines to itself: [N] each.

    delay: of a cache of so many tokens, between two machines. tbt is NaN for answers of one token.
    """
    pairs = zip(trace.prompt.tolist(), trace.output.tolist(), strict=True)
    rows = [
        (
            reader.prompt_time(p),
            writer.token_time(1, p + g // 2),
            delay(p) if delay and g > 1 else 0,
        )
        for p, g in pairs
    ]
    ttft, step, moved = np.array(rows, dtype=float).T
    steps = trace.output - 1
    writing = steps * step + moved
    tbt = np.divide(writing, steps, out=np.full(len(trace), np.nan), where=steps > 0)
    return {"ttft": ttft, "tbt": tbt, "e2e": ttft + writing}


def max_rate_under_slo(
    trace: Trace,
    cluster: Cluster,
    policy: Policy,
    slo: SLO,
    reference: PhaseModel,
    *,
    batching: Batching = "mixed",
    tolerance: float = 0.02,
    above: float = 0.0,
) -> float:
    """The largest rate of these requests, in requests per second, that meets the targets; 0.0 if
    none does. By bisection, to within the share `tolerance`.

    above: a rate to beat; 0.0 at once where it is not. Raises InputError where the requests are too
    few to load the cluster: served on time even if all of them are there before one could be done.
    """

    def met(rate: float) -> bool:
        served = simulate(trace.at_rate(rate), cluster, policy, batching=batching)
        return latencies(served, reference).load(slo) <= 1

    machines = sum(pool.count for pool in cluster.pools)
    alone = float(alone_on(reference, reference, trace)["e2e"].mean())
    low = above or machines / alone
    floor = above or low * 1e-3
    while not met(low):
        low /= 2
        if low < floor:
            return 0.0
    high = low * 1.25 if above else low * 2
    while met(high):
        if high > len(trace) / alone:
            raise InputError(
                f"{len(trace)} requests cannot load {machines} machines: they are served on time "
                "even if all come at once; simulate more requests, or fewer machines"
            )
        low, high = high, 2 * high
    while high - low > tolerance * high:
        middle = (low + high) / 2
        low, high = (middle, high) if met(middle) else (low, middle)
    return low
