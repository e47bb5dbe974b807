"""The demo's first part: a paragraph with a factual error, as the model reads it."""

from __future__ import annotations

from typing import Any

from tokenry.app.demo.page import FAINT, INK, SECOND, Section, inline_svg, new_axes, new_figure
from tokenry.measure.inspect import inspect
from tokenry.measure.inspection import Inspection

PARAGRAPH = (
    "Paris is the capital of France. It stands on the river Seine. London is the capital of "
    "England and stands on the river Thames. Rome is the capital of Norway and stands on the "
    "river Tiber. All three cities are older than a thousand years."
)
ERROR = " Norway"


def section(loaded: Any, text: str = PARAGRAPH, error: str = ERROR, rows: int = 6) -> Section:
    """Inspect `text`, which says something false at the token `error`."""
    model, tokenizer = loaded
    inspection = inspect(model, tokenizer, text, signals=("surprisal", "entropy", "rank"))
    table = inspection.table()
    wrong = next((row for row in table if row["token"] == error), None)
    rank = None if wrong is None else table.index(wrong) + 1
    numbers = [("tokens", str(len(inspection.ids)))]
    if wrong is not None:
        share = max(wrong["alternatives"], key=lambda item: item[1])
        ordinary = inspection.signals["surprisal"][inspection.scored].median().item()
        numbers = [
            (f"surprise at “{error.strip()}”", f"{wrong['surprisal']:.1f} nats"),
            ("median of the paragraph", f"{ordinary:.1f} nats"),
            ("place among all tokens", f"{rank} of {len(table)}"),
            (f"expected instead: “{share[0].strip()}”", f"{share[1]:.0%}"),
        ]
    return Section(
        key="inspected",
        title="Inspected",
        about="One statement in this paragraph is false, and nobody told the model which. The "
        "darker a token, the less the model expected it after what stands before it.",
        code=f'tokenry inspect "{text}"',
        numbers=numbers,
        content={
            "tokens": tokens(inspection, error),
            "table": [expected(row, error) for row in table[:rows]],
            "figure": inline_svg(draw(inspection, error), "Surprisal of every token"),
        },
    )


def tokens(inspection: Inspection, error: str) -> list[dict[str, Any]]:
    """Text, strength of colour and tooltip of every token."""
    result = []
    for position, heat in enumerate(inspection.heat("surprisal")):
        row = inspection.row(position)
        note = "nothing stands before it" if heat is None else f"{row['surprisal']:.2f} nats"
        result.append(
            {
                "text": row["token"],
                "heat": f"{abs(heat or 0):.3f}",
                "note": note,
                "error": row["token"] == error,
            }
        )
    return result


def expected(row: dict[str, Any], error: str) -> dict[str, Any]:
    others = [item for item in row["alternatives"] if item[0] != row["token"]][:2]
    return {
        "token": row["token"],
        "error": row["token"] == error,
        "surprisal": f"{row['surprisal']:.1f}",
        "rank": f"{row['rank']:,}",
        "others": ", ".join(f"“{spelled_out(piece)}” {share:.0%}" for piece, share in others),
    }


def spelled_out(piece: str) -> str:
    """A token without its space; what is nothing but space is spelled."""
    return piece.strip() or repr(piece)[1:-1]


def draw(inspection: Inspection, error: str) -> Any:
    """A bar for every token; the error and its rivals carry their names."""
    figure = new_figure(height=1.9)
    axis = new_axes(figure)[0, 0]
    values = inspection.signals["surprisal"].tolist()
    scored = inspection.scored.nonzero()[:, 0].tolist()
    names = [piece.decode(errors="replace") for piece in inspection.pieces]
    colours = [SECOND if names[t] == error else FAINT for t in scored]
    axis.bar(scored, [values[t] for t in scored], color=colours, width=0.75)
    for position in sorted(scored, key=lambda t: -values[t])[:4]:
        weight = "bold" if names[position] == error else "normal"
        axis.annotate(
            names[position].strip(),
            (position, values[position]),
            xytext=(0, 2),
            textcoords="offset points",
            ha="center",
            size=8,
            color=INK,
            weight=weight,
        )
    axis.set(ylabel="surprisal (nats)", xlabel="token of the paragraph", xlim=(-1, len(values)))
    axis.margins(y=0.18)
    return figure
