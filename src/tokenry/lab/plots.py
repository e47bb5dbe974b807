"""The two pictures that most experiments need: curves and bars, with their labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Points = Sequence[tuple[float, float]]


def curves(
    axes: Any, lines: Mapping[str, Points], xlabel: str, ylabel: str, *, marker: str = "o"
) -> None:
    """A line for each label -> [(x, y), ...], in one colour a label, with a legend.

    A label that ends in a number in brackets, "dpo [3]", is one of several runs of "dpo": the runs
    share a colour, are drawn faintly, and stand in the legend once.
    """
    colors: dict[str, str] = {}
    for label, points in lines.items():
        name, run, _ = label.partition(" [")
        new = name not in colors
        color = colors.setdefault(name, f"C{len(colors) % 10}")
        xs, ys = zip(*points, strict=True)
        shade = 0.5 if run else 1.0
        legend = name if new else "_nolegend_"
        axes.plot(xs, ys, marker=marker, color=color, alpha=shade, label=legend)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.legend()


def bars(axes: Any, groups: Mapping[str, Mapping[str, float]], ylabel: str) -> None:
    """Bars in groups: label -> {place: height}; each label has one colour."""
    places = list(dict.fromkeys(place for heights in groups.values() for place in heights))
    width = 0.8 / max(1, len(groups))
    for number, (label, heights) in enumerate(groups.items()):
        xs = [places.index(place) + number * width for place in heights]
        axes.bar(xs, list(heights.values()), width, label=label)
    middle = width * (len(groups) - 1) / 2
    axes.set_xticks([at + middle for at in range(len(places))], places)
    axes.set(ylabel=ylabel)
    if len(groups) > 1:
        axes.legend()
