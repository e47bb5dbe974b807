"""tokenry inspect: a text as a model sees it, token by token."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tokenry.app.terminal import (
    AsJson,
    Model,
    Seed,
    check_model,
    check_writable,
    load,
    notes,
    plain_table,
    print_json,
    results,
    text_or_file,
    working,
    write_text,
)
from tokenry.app.verb import require_only, require_use
from tokenry.core.errors import InputError

JSON_HAS_ALL = "--json prints every token"


def inspect(
    text: Annotated[
        str | None, typer.Argument(help="The text; [cyan]-[/] reads it from standard input.")
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Read the text here.")] = None,
    model: Model = "smollm2",
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            help="A second model to compare with, such as the folder of a training run.",
        ),
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(
            "--pairs",
            help="JSON lines of preferences: which of their tokens did the run in --against move?",
        ),
    ] = None,
    signal: Annotated[
        list[str] | None,
        typer.Option(
            "--signal",
            "-s",
            help="What to compute (repeat it): surprisal, entropy, varentropy, rank, margin; with "
            "--against also difference and divergence. The first one colours the text and orders "
            "the table.",
        ),
    ] = None,
    rows: Annotated[int, typer.Option("--rows", min=0, help="Rows of the table.")] = 10,
    html: Annotated[
        Path | None, typer.Option("--html", help="Also write a page with details on hover.")
    ] = None,
    as_json: AsJson = False,
    seed: Seed = 0,
) -> None:
    """Colour a text by how surprising each token is to a model.

    Below it stand the most surprising tokens and what the model expected in their place. With
    [cyan]--against[/], the two models are compared on the same bytes, even if their tokens differ,
    and the tokens on which they differ most stand first; of two models with one vocabulary, such as
    a base and its tuned checkpoint, it also says how few tokens carry the divergence between their
    predictions. Without a text, [cyan]--against[/] names
    the folder of a training run and the report is about its own pairs (or [cyan]--pairs[/]): the
    tokens that the run moved, and by how much. Nothing here is random: the seed changes nothing.

    Examples:

    [cyan]tokenry inspect "The capital of France is Berlin."[/]

    [cyan]tokenry inspect -f essay.txt -s entropy --html essay.html[/]

    [cyan]tokenry inspect "Fourscore and seven years ago" --against gemma3-270m[/]

    [cyan]tokenry inspect --against trained --pairs heldout.jsonl --html moved.html[/]
    """
    if text is None and file is None and against is not None:
        require_only(
            ("--against", "--pairs", "--rows", "--html"),
            "without a text, the report is about the run",
        )
        require_use("--rows", not as_json, JSON_HAS_ALL)
        from tokenry.app.run_report_terminal import report_run

        report_run(against, pairs, rows, as_json, html)
        return
    if pairs is not None:
        raise InputError("--pairs is the report of a run: give --against RUN and no text")
    content = text_or_file(text, file)
    if not content.strip():
        raise InputError("there is nothing to inspect in an empty text")
    require_use("--rows", not as_json, JSON_HAS_ALL)
    if html is not None:
        check_writable(html)
    wanted = signal or (["difference"] if against is not None else ["surprisal", "entropy"])
    check_model(model)
    from tokenry.measure import inspect as measure

    measure.check_signals(wanted, against is not None)  # before the model is loaded, not after
    first = load(model)
    second = None if against is None else load(against)
    with working("scoring the text"):
        inspection = measure.inspect(
            first.model, first.tokenizer, content, signals=wanted, against=second
        )
    if html is not None:
        write_text(html, inspection.to_html(wanted[0]))
    if as_json:
        print_json(
            {
                "model": inspection.name,
                "against": None if inspection.against is None else inspection.against.name,
                "units": inspection.units,
                "concentration": concentration(inspection),
                "tokens": [inspection.row(position) for position in range(len(inspection.ids))],
            }
        )
    else:
        show(inspection, wanted[0], rows)
    if html is not None:
        notes().print(f"written to {html}")


def concentration(inspection: Any) -> dict[str, float] | None:
    """How few tokens carry the divergence, as JSON: shares of the tokens."""
    spread = inspection.concentration
    if spread is None:
        return None
    return {
        "tokens": len(spread.values),
        "carry_half": spread.carrying(0.5),
        "carry_nine_tenths": spread.carrying(0.9),
        "below_0.01": spread.below(0.01),
        "above_0.1": spread.above(0.1),
    }


def show(inspection: Any, signal: str, rows: int) -> None:
    """The coloured text, and the table of the tokens where a signal is largest."""
    from rich.text import Text

    console = results()
    console.print(inspection.to_rich(signal, console.width), soft_wrap=True)
    if said := inspection.concentrated():
        console.print(f"\n{said}")
    if not rows or not bool(inspection.scored.any()):
        return
    table = plain_table()
    table.add_column("token", no_wrap=True)
    for name in inspection.signals:
        unit = inspection.units.get(name, "")
        table.add_column(f"{name}\n({unit})" if unit else name, justify="right")
    table.add_column("expected instead", style="dim")
    tokens = inspection.table(signal)[:rows]
    longest = max(len(repr(row["token"])) for row in tokens)
    width = console.width - longest - sum(len(name) + 3 for name in inspection.signals) - 3
    for row in tokens:
        others = [f"{t!r} {share:.0%}" for t, share in row["alternatives"] if t != row["token"]]
        numbers = [number(row[name]) for name in inspection.signals]
        # one to a line where they do not fit side by side: a space in a token is no place to break
        joined = ", ".join(others[:3])
        expected = joined if len(joined) <= width else "\n".join(others[:3])
        table.add_row(Text(repr(row["token"])), *numbers, Text(expected))
    console.print()
    console.print(table)


def number(value: float | None) -> str:
    """A signal in a cell; a dash where it says nothing about the token."""
    if value is None:
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.2f}"
