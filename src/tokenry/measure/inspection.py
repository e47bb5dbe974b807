"""What is known of a text's tokens: as rows, as coloured terminal text, or as a web page."""

from __future__ import annotations

import codecs
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tokenry.core.aggregate import masked_mean
from tokenry.core.errors import UnknownNameError
from tokenry.measure.concentration import Concentration
from tokenry.measure.token_page import coloured, document, line, number, table
from tokenry.text.alignment import Span

if TYPE_CHECKING:
    from rich.text import Text

ROWS = 20  # of the page's table of surprising tokens and of its table of spans

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


@dataclass(frozen=True)
class Comparison:
    """The surprisals of two models on the byte spans that their tokenizations share.

    surprisal, other_surprisal: [S], nats, summed over a span's tokens; difference is the first
    minus the second, positive where the second model knew better. scored: [S] bool, False (and 0)
    where a side's first token has nothing before it.
    """

    name: str
    spans: tuple[Span, ...]
    surprisal: Tensor
    other_surprisal: Tensor
    scored: Tensor
    same_vocabulary: bool

    @property
    def difference(self) -> Tensor:
        return self.surprisal - self.other_surprisal


@dataclass(frozen=True)
class Inspection:
    """What a model says about each of the T tokens of a text.

    pieces: the tokens' bytes. scored: [T] bool. signals: name -> [T], which say something only
    where `scored_by(name)` and are 0 elsewhere; "surprisal" is always there, "difference" and (one
    vocabulary) "divergence" with a second model. top_logprobs: [T, k], and top_pieces the same
    tokens as text, likeliest first.
    """

    text: str
    name: str
    ids: Tensor
    pieces: tuple[bytes, ...]
    scored: Tensor
    signals: dict[str, Tensor]
    top_ids: Tensor
    top_logprobs: Tensor
    top_pieces: tuple[tuple[str, ...], ...]
    against: Comparison | None = None
    units: dict[str, str] = field(default_factory=dict)

    def scored_by(self, name: str) -> Tensor:
        """[T] bool: the tokens that a signal speaks about. A difference needs both models' score
        of the whole stretch of text that the token belongs to."""
        self._signal(name)
        return self.scored if self.against is None or name != "difference" else self._compared

    def mean(self, name: str = "surprisal") -> float:
        """Mean of a signal over the tokens that it speaks about; 0 where there are none."""
        return masked_mean(self._signal(name), self.scored_by(name)).item()

    def table(self, by: str = "surprisal") -> list[dict[str, Any]]:
        """One row per scored token, the one with the largest absolute value of a signal first."""
        scored = self.scored_by(by)
        order = self._signal(by).float().abs().argsort(descending=True, stable=True)
        return [self.row(int(t)) for t in order if scored[t]]

    def row(self, position: int) -> dict[str, Any]:
        """A token's position, text, id, signals (None where one says nothing about it), and its
        alternatives as (text, probability)."""
        shares = self.top_logprobs[position].exp().tolist() if self.scored[position] else []
        values = {
            name: values[position].item() if self.scored_by(name)[position] else None
            for name, values in self.signals.items()
        }
        return {
            "position": position,
            "token": readable(self.pieces[position]),
            "id": int(self.ids[position]),
            **values,
            "alternatives": list(zip(self.top_pieces[position], shares, strict=False)),
        }

    def scale(self, name: str) -> float:
        """The size at which a signal takes its full colour: all but its largest 2% are below."""
        values = self._signal(name)[self.scored_by(name)].float().abs()
        values = values[values.isfinite()]
        return max(values.quantile(0.98).item(), 1e-6) if len(values) else 1.0

    def heat(self, name: str) -> list[float | None]:
        """Each token's colour, -1..1 (only "difference" is ever negative); None where not scored.

        Ranks, which run over orders of magnitude, are coloured by their logarithm.
        """
        values, full = self._signal(name).float(), torch.tensor(self.scale(name))
        if name == "rank":
            values, full = values.log1p(), full.log1p()
        heats = (values / full).clamp(-1, 1).tolist()
        scored = self.scored_by(name).tolist()
        return [heat if seen else None for heat, seen in zip(heats, scored, strict=True)]

    @cached_property
    def concentration(self) -> Concentration | None:
        """How few tokens carry the divergence of two models of one vocabulary; None without it, and
        where it is not finite."""
        if "divergence" not in self.signals:
            return None
        values = self.signals["divergence"][self.scored]
        return Concentration(values) if len(values) and bool(values.isfinite().all()) else None

    def concentrated(self) -> str:
        """That in a sentence; empty where there is nothing to say."""
        spread = self.concentration
        if spread is None:
            return ""
        said = (
            f"Of {len(spread.values)} tokens, {spread.carrying(0.5):.1%} carry half of the "
            f"divergence between the two models and {spread.carrying(0.9):.1%} nine tenths of it"
        )
        if self.units["divergence"] != "jensen_shannon":
            return f"{said}."
        near, far = spread.below(0.01), spread.above(0.1)
        return f"{said}; {near:.1%} have less than 0.01 nats, {far:.1%} more than 0.1."

    def to_html(self, signal: str = "surprisal") -> str:
        """A self-contained page: coloured tokens, details on hover, a choice of signals."""
        self._signal(signal)
        return _page(self, signal)

    def to_rich(self, signal: str = "surprisal", width: int | None = None) -> Text:
        """The text for the terminal, each token's background coloured by a signal.

        width: columns; lines then end where a word begins, or inside one that is longer than a line
        at a token, and no token is broken that is not longer itself.
        """
        from rich.text import Text

        result, texts = Text(), _whole_characters(self.pieces)
        breaks = set() if width is None else _line_breaks(texts, width)
        for position, heat in enumerate(self.heat(signal)):
            if position in breaks:
                result.append("\n")
            result.append(texts[position], style=_terminal_style(heat))
        return result

    @cached_property
    def _compared(self) -> Tensor:
        assert self.against is not None
        counts = [span.a_end - span.a_start for span in self.against.spans]
        return self.against.scored.repeat_interleave(torch.tensor(counts))

    def _signal(self, name: str) -> Tensor:
        if name not in self.signals:
            raise UnknownNameError("signal of this inspection", name, self.signals)
        return self.signals[name]


def readable(piece: bytes) -> str:
    """A token's bytes as text; bytes that are no whole character are spelled \\xNN."""
    return piece.decode(errors="backslashreplace")


# --- terminal -----------------------------------------------------------------------------------


def _whole_characters(pieces: Sequence[bytes]) -> list[str]:
    """The pieces as text, each character shown by the token that completes it."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    return [decoder.decode(piece) for piece in pieces]


def _line_breaks(texts: Sequence[str], width: int) -> set[int]:
    """The tokens before which a line of `width` columns has to end."""
    from rich.cells import cell_len

    starts = [t for t, text in enumerate(texts) if t == 0 or text[:1].isspace()]
    breaks, column = set(), 0
    for start, end in zip(starts, [*starts[1:], len(texts)], strict=True):
        word = cell_len("".join(texts[start:end]).rstrip("\n").rpartition("\n")[2])
        for position in range(start, end):
            lines = texts[position].split("\n")
            size = cell_len(lines[0])
            new_word = position == start and column + word > width >= word
            if column and (new_word or column + size > width):
                breaks.add(position)
                column = 0
            column = cell_len(lines[-1]) + (column if len(lines) == 1 else 0)
    return breaks


def _terminal_style(heat: float | None) -> str:
    if heat is None or abs(heat) < 0.05:
        return ""
    full = (230, 85, 13) if heat > 0 else (49, 130, 189)
    red, green, blue = (round(255 + (c - 255) * abs(heat)) for c in full)
    return f"black on #{red:02x}{green:02x}{blue:02x}"


# --- web page -----------------------------------------------------------------------------------


def _page(inspection: Inspection, chosen: str) -> str:
    """The whole page, coloured by the signal `chosen` at first.

    It holds the strengths of all signals, and a few lines of script set them when another signal is
    chosen. Without script the page shows the signal that it was made for.
    """
    signals = {name: _coloured_by(inspection, name) for name in inspection.signals}
    options = "".join(
        f'<option value="{escape(name)}"{" selected" if name == chosen else ""}>'
        f"{escape(_titled(inspection, name))}</option>"
        for name in signals
    )
    first = signals[chosen]
    title = f"Tokens as {inspection.name} sees them"
    if inspection.against is not None:
        title += f", against {inspection.against.name}"
    both = " both" if first["signed"] else ""
    return document(
        title,
        f"""<div class="legend">
<label>Colour by <select id="signal">{options}</select></label>
<span class="scale"><span id="low">{escape(first["low"])}</span><span id="bar" \
class="bar{both}"></span><span id="high">{escape(first["high"])}</span></span>
<span>dotted: not scored</span>
</div>
<div class="text">{_tokens(inspection, first["heat"])}</div>
<h2>Most surprising tokens</h2>
{_surprising(inspection)}
{_concentrated(inspection)}
{_differing(inspection)}
<script type="application/json" id="heats">{_json(signals)}</script>
<script>{SCRIPT}</script>""",
    )


def _coloured_by(inspection: Inspection, name: str) -> dict[str, Any]:
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
    return "".join(
        coloured(readable(piece), heat, _detail(inspection, position), first=not position)
        for position, (piece, heat) in enumerate(zip(inspection.pieces, heats, strict=True))
    )


def _detail(inspection: Inspection, position: int) -> str:
    row = inspection.row(position)
    lines = [f"{row['token']!r}  id {row['id']}  position {position}"]
    if not inspection.scored[position]:
        return "\n".join([*lines, "not scored: nothing stands before it"])
    for name in inspection.signals:
        unit = "" if row[name] is None else inspection.units.get(name, "")
        lines.append(f"{name} {number(row[name])} {unit}".rstrip())
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
    return table(["position", "token", *titles, "expected instead"], rows)


def _best(row: dict[str, Any]) -> str:
    others = [(piece, share) for piece, share in row["alternatives"] if piece != row["token"]]
    return ", ".join(f"{piece!r} {share:.0%}" for piece, share in others[:3])


def _concentrated(inspection: Inspection) -> str:
    """How few tokens carry the divergence: a sentence and the curve behind it."""
    spread = inspection.concentration
    if spread is None:
        return ""
    curve = line(spread.curve(), "share of the tokens", "share of the divergence")
    said = inspection.concentrated()
    return f"<h2>How few tokens the two models differ on</h2>\n<p>{said}</p>\n{curve}"


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
    return f"<h2>Where the two models differ most</h2>\n<p>{note}</p>\n{table(titles, rows)}"


def _titled(inspection: Inspection, name: str) -> str:
    unit = inspection.units.get(name, "")
    return f"{name} ({unit})" if unit else name


def _json(value: Any) -> str:
    """JSON that may stand inside a <script> element."""
    return json.dumps(value, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")
