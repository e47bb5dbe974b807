"""The web page of a run's report: its pairs, each token coloured by how far it moved."""

from __future__ import annotations

from html import escape
from typing import Any

from tokenry.app.run_report import COLUMNS, RunReport, largest_changes, summary
from tokenry.measure.token_page import coloured, document, table

PAIRS = 200
ROWS = 40
STYLE = """.text p { margin: .5rem 0 }
.side { color: var(--faint) }
"""


def page(run: RunReport) -> str:
    """One file without outside resources: red tokens became likelier, blue ones less likely."""
    report = run.report
    changes = largest_changes(report)
    most = max((abs(row[2]) for row in changes[:1]), default=0.0)
    sentences = "".join(f"<p>{escape(line)}</p>\n" for line in summary(run))
    if len(report.pairs) > PAIRS:
        sentences += f"<p>The first {PAIRS} pairs are shown below, the table is of all.</p>\n"
    pairs = "".join(_pair(number, pair, most) for number, pair in enumerate(report.pairs[:PAIRS]))
    rows = [[repr(token), *numbers, before[-40:]] for token, *numbers, before in changes[:ROWS]]
    return document(
        f"Tokens that {run.folder} moved",
        f"""{sentences}<div class="legend">log ratio to {escape(run.reference)}, nats:
<span>−{most:.3g}</span><span class="bar both"></span><span>{most:.3g}</span></div>
{pairs}<h2>The tokens that moved most</h2>
{table(list(COLUMNS), rows, signed=("log ratio (nats)",))}""",
        STYLE,
    )


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
        parts.append(coloured(token, ratio / most if most else 0.0, detail))
    return "".join(parts)
