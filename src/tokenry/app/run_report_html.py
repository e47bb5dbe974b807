"""The web page of a run's report: its pairs, each token coloured by how far it moved."""

from __future__ import annotations

from html import escape
from typing import Any

from tokenry.app.run_report import Moved, most_moved, summary
from tokenry.measure.inspection_html import STYLE

PAIRS = 200
ROWS = 40


def page(moved: Moved) -> str:
    """One file without outside resources: red tokens became likelier, blue ones less likely."""
    report = moved.report
    most = max((abs(row[2]) for row in most_moved(report)[:1]), default=0.0)
    title = f"Tokens that {moved.run} moved"
    sentences = "".join(f"<p>{escape(line)}</p>\n" for line in summary(moved))
    if len(report.pairs) > PAIRS:
        sentences += f"<p>The first {PAIRS} pairs are shown below, the table is of all.</p>\n"
    pairs = "".join(_pair(number, pair, most) for number, pair in enumerate(report.pairs[:PAIRS]))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}
.text p {{ margin: .5rem 0 }}
.side {{ color: var(--faint) }}
</style>
</head>
<body>
<h1>{escape(title)}</h1>
{sentences}<div class="legend">log ratio to {escape(moved.reference)}, nats:
<span>−{most:.3g}</span><span class="bar both"></span><span>{most:.3g}</span></div>
{pairs}<h2>The tokens that moved most</h2>
{_table(report)}
</body>
</html>
"""


def _pair(number: int, pair: Any, most: float) -> str:
    sides = "".join(
        f'<p><span class="side">{side}</span> {_completion(getattr(pair, side), most)}</p>\n'
        for side in ("chosen", "rejected")
    )
    head = f"Pair {number + 1}, margin {pair.margin:+.3f}"
    return f'<h2>{head}</h2>\n<div class="text"><p>{escape(pair.prompt)}</p>\n{sides}</div>\n'


def _completion(completion: Any, most: float) -> str:
    parts = []
    rows = (completion.tokens, completion.logprob, completion.log_ratio, completion.kl)
    for token, logprob, ratio, kl in zip(*rows, strict=True):
        detail = f"{token!r}\nlog ratio {ratio:+.3f}\nKL {kl:.3f}\nlog-probability {logprob:.3f}"
        heat = abs(ratio) / most if most else 0.0
        parts.append(
            f'<span class="t{" cold" if ratio < 0 else ""}" tabindex="0" style="--heat:{heat:.3f}" '
            f'data-detail="{escape(detail).replace(chr(10), "&#10;")}">{escape(token)}</span>'
        )
    return "".join(parts)


def _table(report: Any) -> str:
    titles = ("token", "side", "log ratio (nats)", "KL (nats)", "after")
    head = "".join(f"<th>{title}</th>" for title in titles)
    rows = "".join(
        f'<tr><td>{escape(repr(token))}</td><td>{side}</td><td class="n">{ratio:+.3f}</td>'
        f'<td class="n">{kl:.3f}</td><td>{escape(before[-40:])}</td></tr>\n'
        for token, side, ratio, kl, before in most_moved(report)[:ROWS]
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{rows}</tbody></table>"
