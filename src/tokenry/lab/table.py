"""What an experiment measured, seed by seed, and what follows from it.

    table = Table()
    for seed, run in over_seeds(measure, base=0, count=3):
        table.add("dpo: reward", run.reward, "per text", seed)
    table.gap("tdpo: reward", "dpo: reward")      # paired by seed: an `Evidence`

A margin is a number that the claim needs above 0. With margins m_1..m_n of independent seeds or
items, t = mean(m) / (sd(m) / sqrt n), and the sign is as sure as Student's distribution with n - 1
degrees of freedom says: P(T < t).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any, TypeVar

from tokenry.core.checks import in_range
from tokenry.core.errors import InputError

T = TypeVar("T")


@dataclass(frozen=True)
class Measurement:
    """One figure: what was measured, its value, its unit, and the seed it was measured with."""

    label: str
    value: float
    unit: str = ""
    seed: int | None = None


@dataclass(frozen=True)
class Evidence:
    """Margins that a check needs above 0.

    margins: one for each seed, or for each item where items are paired. exact: they were computed,
        not sampled, so that their sign needs no further sample.
    """

    margins: tuple[float, ...]
    exact: bool = False

    @property
    def mean(self) -> float:
        return fmean(self.margins)

    @property
    def error(self) -> float:
        """Standard error of the mean: 0 for exact margins, infinite for a single sampled one and
        where a margin is not finite."""
        if self.exact:
            return 0.0
        count = len(self.margins)
        if count < 2 or not all(map(math.isfinite, self.margins)):
            return math.inf
        return stdev(self.margins) / math.sqrt(count)

    @property
    def above(self) -> int:
        """How many margins are above 0."""
        return sum(margin > 0 for margin in self.margins)

    @property
    def sure(self) -> float:
        """The probability, in [0, 1], that the true margin is above 0."""
        if self.exact:
            return float(all(margin > 0 for margin in self.margins))
        if math.isinf(self.error):
            return 0.5
        if self.error == 0:
            return float(self.mean > 0)
        return student_cdf(self.mean / self.error, len(self.margins) - 1)

    def within(self, level: float = 0.95) -> float:
        """How far the true margin is from the mean, at most, with this confidence in (0, 1)."""
        in_range("level", level, "(0, 1)")
        if self.error in (0.0, math.inf):
            return self.error
        return self.error * student_quantile((1 + level) / 2, len(self.margins) - 1)


@dataclass
class Table:
    """Measurements of several labels over several seeds, in the order in which they came."""

    measurements: list[Measurement] = field(default_factory=list)

    def add(self, label: str, value: Any, unit: str = "", seed: int | None = None) -> None:
        """One value: a number, or a tensor of one."""
        self.measurements.append(Measurement(label, float(value), unit, seed))

    def add_all(
        self, values: Mapping[str, Any], unit: str = "", seed: int | None = None, name: str = ""
    ) -> None:
        """Several values of one unit, with `name: ` before their labels if there is a name."""
        for label, value in values.items():
            self.add(f"{name}: {label}" if name else label, value, unit, seed)

    def values(self, label: str) -> dict[int | None, float]:
        """The values of a label by seed. InputError for a label that was not measured."""
        chosen = {row.seed: row.value for row in self.measurements if row.label == label}
        if not chosen:
            raise InputError(f"{label!r} was not measured; known: {sorted(self.labels())}")
        return chosen

    def labels(self) -> list[str]:
        return list(dict.fromkeys(row.label for row in self.measurements))

    def mean(self, label: str) -> float:
        return fmean(self.values(label).values())

    def gap(self, more: str, less: str, by: float = 0.0, factor: float = 1.0) -> Evidence:
        """more - factor * less - by, seed by seed: the margins of "more is above less by `by`"."""
        one, other = self.values(more), self.values(less)
        if one.keys() != other.keys():
            raise InputError(f"{more!r} and {less!r} were measured with different seeds")
        return Evidence(tuple(one[seed] - factor * other[seed] - by for seed in one))

    def above(self, label: str, bound: float) -> Evidence:
        """The margins of "the label is above the bound"."""
        return Evidence(tuple(value - bound for value in self.values(label).values()))

    def below(self, label: str, bound: float) -> Evidence:
        """The margins of "the label is below the bound"."""
        return Evidence(tuple(bound - value for value in self.values(label).values()))


def over_seeds(
    run: Callable[[int], T], base: int, count: int, stride: int = 100
) -> Iterator[tuple[int, T]]:
    """(seed, run(seed)) for the seeds base * stride, base * stride + 1, ...: `count` of them.

    With a stride of at least `count`, different bases share no seed, so that another base is a
    repetition that is independent of the first.
    """
    for seed in range(base * stride, base * stride + count):
        yield seed, run(seed)


def paired(one: Iterable[Any], other: Iterable[Any]) -> Evidence:
    """one - other, item by item: numbers, truth values, or tensors [n]."""
    return Evidence(tuple(float(a) - float(b) for a, b in zip(one, other, strict=True)))


def items_above(values: Iterable[Any], bound: float = 0.0) -> Evidence:
    """value - bound, item by item: the margins of "their mean is above the bound"."""
    return Evidence(tuple(float(value) - bound for value in values))


def student_cdf(t: float, degrees: int) -> float:
    """P(T <= t) of Student's distribution with `degrees` >= 1 degrees of freedom, in closed form.

    With theta = atan(t / sqrt n): for odd n, 1/2 + (theta + sin cos (1 + 2/3 cos^2 + ...)) / pi;
    for even n, 1/2 + sin (1 + 1/2 cos^2 + 1 3/(2 4) cos^4 + ...) / 2.
    """
    theta = math.atan(t / math.sqrt(degrees))
    sine, cosine = math.sin(theta), math.cos(theta)
    odd = degrees % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for step in range(1 + odd, degrees, 2):
        total += term
        term *= cosine**2 * step / (step + 1)
    return 0.5 + (theta + sine * total) / math.pi if odd else 0.5 + sine * total / 2


def student_quantile(probability: float, degrees: int) -> float:
    """The t with P(T <= t) = probability, in [1/2, 1), to 1e-9 of itself."""
    low, high = 0.0, 1.0
    while student_cdf(high, degrees) < probability:
        low, high = high, 2 * high
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        if student_cdf(middle, degrees) < probability:
            low = middle
        else:
            high = middle
    return high
