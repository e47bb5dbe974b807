"""The report of a run as a person asks for it: a table in the terminal, JSON, or a page."""

from __future__ import annotations

from pathlib import Path

from tokenry.app.run_report import COLUMNS, RunReport, largest_changes, read_run, summary
from tokenry.app.run_report_html import page
from tokenry.app.terminal import (
    check_writable,
    notes,
    plain_table,
    print_json,
    results,
    write_text,
)


def report_run(
    folder: str, pairs: Path | None, rows: int, as_json: bool, html: Path | None = None
) -> None:
    """Show what a run moved on its own pairs, or on others: as a table, JSON, or a page."""
    if html is not None:
        check_writable(html)
    run = read_run(folder, pairs)
    if html is not None:
        write_text(html, page(run))
    if as_json:
        print_json(run.to_dict())
    else:
        show(run, rows)
    if html is not None:
        notes().print(f"written to {html}")


def show(run: RunReport, rows: int) -> None:
    """The summary, and the tokens whose log-probability changed most."""
    from rich.text import Text

    console = results()
    for line in summary(run):
        console.print(line, soft_wrap=True, markup=False)
    tokens = largest_changes(run.report)[:rows]
    if not tokens:
        return
    table = plain_table(*COLUMNS, numbers=[title for title in COLUMNS if "nats" in title])
    for token, side, log_ratio, kl, before in tokens:
        colour = "green" if log_ratio > 0 else "red"
        table.add_row(
            Text(repr(token)),
            side,
            f"[{colour}]{log_ratio:+.3f}[/]",
            f"{kl:.3f}",
            Text(before[-40:].replace("\n", " "), style="dim"),
        )
    console.print(table)
