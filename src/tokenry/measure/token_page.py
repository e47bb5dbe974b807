"""Web pages of coloured tokens: one file, no outside resource, light and dark, wide and narrow.

Every token is a <span> whose background's strength is a CSS variable, so that a script can colour
it by another signal; details stand beside it on hover.
"""

from __future__ import annotations

import math
from html import escape
from typing import Any

LONG = 24  # characters of a token that may be broken over lines after all
UNTITLED = ("token", "text")

STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --paper: #fff; --faint: #767676; --line: #ddd }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --paper: #16181c; --faint: #9a9a9a; --line: #3a3d44 }
}
body { color: var(--ink); background: var(--paper); font: 16px/1.5 system-ui, sans-serif;
  max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
.text { font: 16px/2 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere;
  border: 1px solid var(--line); border-radius: 6px; padding: 1rem }
.t { --heat: 0; position: relative; border-radius: 3px; padding: 2px 0; white-space: pre;
  background: rgb(230 85 13 / calc(var(--heat) * .85)) }
.t.long { white-space: pre-wrap }
.t.cold { background: rgb(49 130 189 / calc(var(--heat) * .85)) }
.t.unscored { border-bottom: 1px dotted var(--faint) }
.t i { color: var(--faint); font-style: normal }
.t:hover, .t:focus { outline: 2px solid var(--ink); z-index: 2 }
.t:hover::after, .t:focus::after { content: attr(data-detail); position: absolute; left: 0;
  top: 1.9em; z-index: 3; width: max-content; max-width: 26rem; white-space: pre-wrap;
  font: 13px/1.4 ui-monospace, monospace; color: var(--ink); background: var(--paper);
  border: 1px solid var(--ink); border-radius: 4px; padding: .4rem .6rem }
.legend { display: flex; gap: .6rem; align-items: center; margin: 1rem 0; color: var(--faint);
  flex-wrap: wrap }
.scale { white-space: nowrap }
.bar { display: inline-block; width: 7rem; margin: 0 .5rem; height: .9rem;
  vertical-align: middle; border: 1px solid var(--line);
  border-radius: 3px; background: linear-gradient(to right, rgb(230 85 13 / 0),
  rgb(230 85 13 / .85)) }
.bar.both { background: linear-gradient(to right, rgb(49 130 189 / .85), rgb(49 130 189 / 0),
  rgb(230 85 13 / .85)) }
figure { margin: 1rem 0 }
figure svg { max-width: 100% }
figcaption { color: var(--faint); font-size: 14px }
table { border-collapse: collapse; font-size: 14px; display: block; overflow-x: auto }
td, th { border-bottom: 1px solid var(--line); padding: .25rem .7rem; text-align: left;
  white-space: pre-wrap }
td.n { text-align: right; font-variant-numeric: tabular-nums }
@media (max-width: 36rem) {
  h1 { font-size: 1.5rem }
  .t:hover::after, .t:focus::after { position: fixed; left: 1rem; right: 1rem; top: auto;
    bottom: 1rem; width: auto; max-width: none }
  thead { display: none }
  table, tbody, tr { display: block }
  tr { border-bottom: 1px solid var(--line); padding: .4rem 0 }
  td { display: inline-block; border: 0; padding: 0 1rem 0 0; overflow-wrap: anywhere }
  td[data-title]::before { content: attr(data-title) " "; color: var(--faint) }
}
"""


def document(title: str, body: str, style: str = "") -> str:
    """The whole page, with further rules of style."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}{style}</style>
</head>
<body>
<h1>{escape(title)}</h1>
{body}
</body>
</html>
"""


def coloured(text: str, heat: float | None, detail: str, first: bool = False) -> str:
    """A token.

    Args:
        text: of the token.
        heat: -1 (cold) to 1; None where nothing is known of it.
        detail: what is said on hover.
        first: whether no token stands before it.
    """
    piece = escape(text).replace("\n", "<i>↵</i>\n")
    kind = "t unscored" if heat is None else "t cold" if heat < 0 else "t"
    kind += " long" if len(piece) > LONG else ""
    # a token is never broken, so that lines may break only where a word begins
    start = "<wbr>" if not first and text[:1] in (" ", "\t") else ""
    style = f' style="--heat:{abs(heat):.3f}"' if heat else ""
    said = escape(detail).replace("\n", "&#10;")
    return f'{start}<span class="{kind}" tabindex="0"{style} data-detail="{said}">{piece}</span>'


def table(titles: list[str], rows: list[list[Any]], signed: tuple[str, ...] = ()) -> str:
    """Texts, and numbers on the right; `signed` columns have their sign even where it is +."""
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    plus = [title in signed for title in titles]
    cells = ("".join(map(_cell, row, titles, plus)) for row in rows)
    body = "".join(f"<tr>{row}</tr>\n" for row in cells)
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table>"


def _cell(value: Any, title: str, signed: bool) -> str:
    """A cell; on narrow screens, where a row is a paragraph, with the column's title before it."""
    titled = "" if title in UNTITLED else f' data-title="{escape(title)}"'
    if isinstance(value, str):
        return f"<td{titled}>{escape(value)}</td>"
    plus = "+" if signed and value > 0 else ""
    return f'<td class="n"{titled}>{plus}{number(value)}</td>'


def line(points: list[tuple[float, float]], xlabel: str, ylabel: str, width: int = 320) -> str:
    """A line through points in the unit square as a picture, the diagonal faintly below it.

    Args:
        points: (x, y) from left to right, in [0, 1]; of more than `width`, as many are drawn.
        xlabel: below the picture.
        ylabel: above it.
        width: and height of the square, pixels.
    """
    step = max(1, -(-len(points) // width))
    drawn = [*points[:-1:step], points[-1]]
    path = " ".join(f"{x * width:.1f},{(1 - y) * width:.1f}" for x, y in drawn)
    said = escape(f"{ylabel} (0 to 1, upwards) against {xlabel} (0 to 1, rightwards)")
    return (
        f'<figure><figcaption>{said}</figcaption><svg viewBox="-2 -2 {width + 4} {width + 4}" '
        f'width="{width}" role="img" aria-label="{said}" fill="none">'
        f'<rect width="{width}" height="{width}" stroke="var(--line)"/>'
        f'<line x1="0" y1="{width}" x2="{width}" y2="0" stroke="var(--line)"/>'
        f'<polyline points="{path}" stroke="rgb(230 85 13)" stroke-width="2"/></svg></figure>'
    )


def number(value: float | None) -> str:
    """A number as it is written on a page."""
    if value is None:
        return "not scored"
    if isinstance(value, int):
        return str(value)
    return f"{value:.3f}" if math.isfinite(value) else "∞" if value > 0 else str(value)
