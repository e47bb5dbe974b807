"""The web page of an inspection: one file, no outside resource, light and dark.

Every token is a <span> whose background's strength is a CSS variable; the page holds the strengths
of all signals, and a few lines of script set them when another signal is chosen. Without script the
page shows the signal it was made for.
"""

from __future__ import annotations

import json
import math
from html import escape
from typing import TYPE_CHECKING, Any

from tokenry.measure.inspect import readable

if TYPE_CHECKING:
    from tokenry.measure.inspect import Inspection

LONG = 24  # characters of a token that may be broken over lines after all
UNTITLED = ("token", "text")
ROWS = 20  # of the table of surprising tokens and of the table of spans

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

SCRIPT = """
const data = JSON.parse(document.getElementById('heats').textContent);
const tokens = [...document.querySelectorAll('.t')];
const choice = document.getElementById('signal');
function show() {
  const chosen = data[choice.value];
  tokens.forEach((token, t) => {
    const heat = chosen.heat[t] || 0;
    token.style.setProperty('--heat', Math.abs(heat));
    token.classList.toggle('cold', heat < 0);
  });
  document.getElementById('low').textContent = chosen.low;
  document.getElementById('high').textContent = chosen.high;
  document.getElementById('bar').classList.toggle('both', chosen.signed);
}
choice.addEventListener('change', show);
show();
"""


def page(inspection: Inspection, shown: str) -> str:
    """The whole page, coloured by the signal `shown` at first."""
    signals = {name: _signal(inspection, name) for name in inspection.signals}
    options = "".join(
        f'<option value="{escape(name)}"{" selected" if name == shown else ""}>'
        f"{escape(_titled(inspection, name))}</option>"
        for name in signals
    )
    first = signals[shown]
    title = f"Tokens as {inspection.name} sees them"
    if inspection.against is not None:
        title += f", against {inspection.against.name}"
    both = " both" if first["signed"] else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<div class="legend">
<label>Colour by <select id="signal">{options}</select></label>
<span class="scale"><span id="low">{escape(first["low"])}</span><span id="bar" \
class="bar{both}"></span><span id="high">{escape(first["high"])}</span></span>
<span>dotted: not scored</span>
</div>
<div class="text">{_tokens(inspection, first["heat"])}</div>
<h2>Most surprising tokens</h2>
{_surprising(inspection)}
{_differing(inspection)}
<script type="application/json" id="heats">{_json(signals)}</script>
<script>{SCRIPT}</script>
</body>
</html>
"""


def _signal(inspection: Inspection, name: str) -> dict[str, Any]:
    heats = [None if h is None else round(h, 3) for h in inspection.heat(name)]
    unit = inspection.units.get(name, "")
    most = f"{inspection.scale(name):.3g} {unit}".strip()
    signed = name == "difference"
    return {
        "heat": heats,
        "low": f"≤ −{most}" if signed else "0",
        "high": f"≥ {most}",
        "signed": signed,
    }


def _tokens(inspection: Inspection, heats: list[float | None]) -> str:
    parts = []
    for position, heat in enumerate(heats):
        piece = escape(readable(inspection.pieces[position])).replace("\n", "<i>↵</i>\n")
        kind = "t unscored" if heat is None else "t cold" if heat < 0 else "t"
        kind += " long" if len(piece) > LONG else ""
        # a token is never broken, so that lines may break only where a word begins
        start = "<wbr>" if position and inspection.pieces[position][:1] in (b" ", b"\t") else ""
        style = f' style="--heat:{abs(heat):.3f}"' if heat else ""
        detail = escape(_detail(inspection, position)).replace("\n", "&#10;")
        parts.append(
            f'{start}<span class="{kind}" tabindex="0"{style} data-detail="{detail}">{piece}</span>'
        )
    return "".join(parts)


def _detail(inspection: Inspection, position: int) -> str:
    row = inspection.row(position)
    lines = [f"{row['token']!r}  id {row['id']}  position {position}"]
    if not inspection.scored[position]:
        return "\n".join([*lines, "not scored: nothing stands before it"])
    for name in inspection.signals:
        unit = "" if row[name] is None else inspection.units.get(name, "")
        lines.append(f"{name} {_number(row[name])} {unit}".rstrip())
    if row["alternatives"]:
        lines.append("likeliest:")
    lines += [f"  {share:6.1%} {piece!r}" for piece, share in row["alternatives"]]
    return "\n".join(lines)


def _surprising(inspection: Inspection) -> str:
    names = list(inspection.signals)
    rows = [
        [row["position"], repr(row["token"]), *(row[name] for name in names), _best(row)]
        for row in inspection.table()[:ROWS]
    ]
    titles = [_titled(inspection, name) for name in names]
    return _table(["position", "token", *titles, "expected instead"], rows)


def _best(row: dict[str, Any]) -> str:
    others = [(piece, share) for piece, share in row["alternatives"] if piece != row["token"]]
    return ", ".join(f"{piece!r} {share:.0%}" for piece, share in others[:3])


def _differing(inspection: Inspection) -> str:
    against = inspection.against
    if against is None:
        return ""
    order = against.difference.abs().argsort(descending=True, stable=True).tolist()
    rows = []
    for index in [index for index in order if against.scored[index]][:ROWS]:
        span = against.spans[index]
        piece = b"".join(inspection.pieces[span.a_start : span.a_end])
        values = (against.surprisal, against.other_surprisal, against.difference)
        rows.append([repr(readable(piece)), *(value[index].item() for value in values)])
    titles = ["text", inspection.name, against.name, "difference"]
    note = "Surprisal in nats, summed over the shortest stretches on whose ends both have a token."
    return f"<h2>Where the two models differ most</h2>\n<p>{note}</p>\n{_table(titles, rows)}"


def _table(titles: list[str], rows: list[list[Any]]) -> str:
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    cells = ("".join(map(_cell, row, titles)) for row in rows)
    body = "".join(f"<tr>{row}</tr>\n" for row in cells)
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table>"


def _cell(value: Any, title: str) -> str:
    """A cell; on narrow screens, where a row is a paragraph, with the column's title before it."""
    titled = "" if title in UNTITLED else f' data-title="{escape(title)}"'
    if isinstance(value, str):
        return f"<td{titled}>{escape(value)}</td>"
    return f'<td class="n"{titled}>{_number(value)}</td>'


def _number(value: float | None) -> str:
    if value is None:
        return "not scored"
    if isinstance(value, int):
        return str(value)
    return f"{value:.3f}" if math.isfinite(value) else "∞" if value > 0 else str(value)


def _titled(inspection: Inspection, name: str) -> str:
    unit = inspection.units.get(name, "")
    return f"{name} ({unit})" if unit else name


def _json(value: Any) -> str:
    """JSON that may stand inside a <script> element."""
    return json.dumps(value, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")
