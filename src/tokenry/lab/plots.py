"""The two pictures that experiments need, as data: curves and bars, drawn where they are shown.

Plot -> results/KEY.json -> the gallery, the app: `draw(plots, figure)`
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Points = Iterable[tuple[float, float]]
MOST = 120
"""Points of a line that are kept: more than a picture shows."""


@dataclass(frozen=True)
class Plot:
    """A picture: lines of points, or groups of bars.

    kind: "curves" or "bars". series: label -> points (x, y), or (place, height) for bars.
    log: "x", "y" or "xy": axes with a logarithmic scale.
    """

    kind: Literal["curves", "bars"]
    series: dict[str, list[tuple[Any, float]]]
    xlabel: str
    ylabel: str
    log: str = ""

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Plot:
        """From its JSON."""
        return cls(**record)


def curves(lines: Mapping[str, Points], xlabel: str, ylabel: str, log: str = "") -> Plot:
    """A line for each label -> [(x, y), ...].

    Of more than `MOST` points as many are kept, evenly, with the first and the last. A label that
    ends in a number in brackets, "dpo [3]", is one of several runs of "dpo": the runs
    share a colour, are drawn faintly, and stand in the legend once.
    """
    series = {
        name: _thinned([(_short(x), _short(y)) for x, y in points])
        for name, points in lines.items()
    }
    return Plot("curves", series, xlabel, ylabel, log)


def bars(groups: Mapping[str, Mapping[str, float]], ylabel: str, xlabel: str = "") -> Plot:
    """Bars in groups: label -> {place: height}; each label has one colour."""
    series = {
        label: [(str(place), _short(height)) for place, height in heights.items()]
        for label, heights in groups.items()
    }
    return Plot("bars", series, xlabel, ylabel)


def _short(value: float) -> float:
    """Six digits: a picture shows no more."""
    return float(f"{float(value):.6g}")


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    if len(points) <= MOST:
        return points
    step = (len(points) - 1) / (MOST - 1)
    return [points[round(number * step)] for number in range(MOST)]


def draw(plots: Sequence[Plot], figure: Any) -> None:
    """All plots side by side on a matplotlib figure."""
    axes = figure.subplots(1, len(plots), squeeze=False)[0]
    for plot, axis in zip(plots, axes, strict=True):
        (_curves if plot.kind == "curves" else _bars)(axis, plot)
        if plot.kind == "curves" and "x" in plot.log:
            axis.set_xscale("log")
        if "y" in plot.log:
            axis.set_yscale("log")
        axis.set(xlabel=plot.xlabel, ylabel=plot.ylabel)
        if len(plot.series) > 1:
            axis.legend()


def _curves(axes: Any, plot: Plot) -> None:
    colors: dict[str, str] = {}
    for label, points in plot.series.items():
        name, run, _ = label.partition(" [")
        new = name not in colors
        color = colors.setdefault(name, f"C{len(colors) % 10}")
        xs, ys = [x for x, _ in points], [y for _, y in points]
        legend = name if new else "_nolegend_"
        axes.plot(xs, ys, marker="o", color=color, alpha=0.5 if run else 1.0, label=legend)


def _bars(axes: Any, plot: Plot) -> None:
    ticks = list(dict.fromkeys(tick for points in plot.series.values() for tick, _ in points))
    width = 0.8 / max(1, len(plot.series))
    for number, (label, points) in enumerate(plot.series.items()):
        xs = [ticks.index(tick) + number * width for tick, _ in points]
        axes.bar(xs, [height for _, height in points], width, label=label)
    middle = width * (len(plot.series) - 1) / 2
    axes.set_xticks([at + middle for at in range(len(ticks))], ticks)
