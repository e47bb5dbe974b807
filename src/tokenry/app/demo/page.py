"""The report: sections of measurements made into one self-contained page, light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from tokenry.core.extras import require_extra

INK, FAINT = "#010203", "#040506"  # stand for the page's own colours in a figure
ACCENT, SECOND = "#0d7a80", "#d9622b"


@dataclass(frozen=True)
class Section:
    """One part of the report.

    key: the template's block that draws it. about: two sentences on what it shows. code: what does
    the same, on the command line or in Python. numbers: (label, value) pairs, as measured. content:
    what the block needs.
    """

    key: str
    title: str
    about: str
    code: str
    numbers: list[tuple[str, str]]
    content: dict[str, Any]
    seconds: float = 0.0


@dataclass(frozen=True)
class Report:
    """All sections and where they were measured."""

    model: str
    sections: Sequence[Section]
    seconds: float
    seed: int
    versions: dict[str, str] = field(default_factory=dict)
    machine: str = ""


def render(report: Report) -> str:
    """The page's HTML."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    source = files("tokenry.app.demo").joinpath("page.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(source).render(report=report)


def require_plots() -> None:
    """Say what to install before minutes are spent on a report that cannot be drawn."""
    require_extra("the demo", "matplotlib", "jinja2", "accelerate", "peft", "datasets")


def new_figure(width: float = 5.2, height: float = 2.4) -> Any:
    """A matplotlib figure in inches; black is the page's ink, whatever it is."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="none")


def new_axes(figure: Any, rows: int = 1, columns: int = 1, **options: Any) -> Any:
    """Quiet axes: no box, faint ticks."""
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for axis in axes.flat:
        axis.set_facecolor("none")
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(FAINT)
        axis.tick_params(colors=FAINT, labelsize=8, length=2.5)
        axis.xaxis.label.set(color=INK, size=9)
        axis.yaxis.label.set(color=INK, size=9)
    return axes


def inline_svg(figure: Any, label: str) -> Any:
    """A figure as an <svg> element whose text stays text and takes the page's colours."""
    from markupsafe import Markup, escape
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": label}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r"font(-family)?: ([\d.]+px )?[^;\"]*", _page_font, svg)
    svg = svg.replace(INK, "currentColor").replace(FAINT, "var(--faint)")
    svg = re.sub(r"\s*\n\s*", "\n", svg)
    title = f'<svg role="img" aria-label="{escape(label)}"'
    return Markup(svg.replace("<svg", title, 1))


def _page_font(match: re.Match[str]) -> str:
    size = match[2]
    return f"font: {size}system-ui, sans-serif" if size else "font-family: system-ui, sans-serif"
