"""tokenry reproduce: run a paper's claim at laptop scale."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tokenry.app.terminal import AsJson, Seed, notes, print_json, results, working
from tokenry.core.errors import InputError


def reproduce(
    keys: Annotated[
        list[str], typer.Argument(metavar="KEY...", help="Keys from [cyan]tokenry papers[/].")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for KEY.json.")] = Path(
        "results"
    ),
    as_json: AsJson = False,
    seed: Seed = 0,
) -> None:
    """Run reproductions, at most three minutes each, and say whether the claims held.

    The record of each, with every measurement, is written to [cyan]results/KEY.json[/]. With
    [cyan]--json[/] the record is printed: one object for one key, a list for several.

    Examples:

    [cyan]tokenry reproduce h2o[/]

    [cyan]tokenry reproduce tdpo awrs --seed 1 --output /tmp/results[/]
    """
    from tokenry.papers import catalogue

    with working("reading the catalogue"):
        for key in keys:  # all of them, before the first one takes its minutes
            catalogue.paper(key)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {output}: {error.strerror}") from None
    found = []
    for key in dict.fromkeys(keys):
        with working(f"reproducing {key}"):
            record, _ = catalogue.reproduce(key, seed=seed)
        path = catalogue.write_result(record, output)
        found.append(record)
        if not as_json:
            show(record)
        notes().print(f"[dim]written to {path}[/]")
    if as_json:
        print_json(found[0] if len(found) == 1 else found)


def show(record: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    console = results()
    verdict = "[green]held[/]" if record["held"] else "[red]not held[/]"
    console.print(f"[bold]{record['key']}[/]: {verdict} in {record['seconds']:.0f} s")
    about = Table.grid(padding=(0, 2))
    for title, name in (("claim", "claim"), ("needs", "needs"), ("note", "reason")):
        if record.get(name):
            about.add_row(f"[dim]{title}[/]", escape(record[name]))
    console.print(about)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2))
    table.add_column("measured")
    table.add_column("value", justify="right")
    table.add_column("unit", style="dim")
    for row in record["measurements"]:
        label = row["label"] if row["seed"] is None else f"{row['label']} (seed {row['seed']})"
        table.add_row(escape(label), f"{row['value']:.4g}", escape(row["unit"]))
    console.print(table)
