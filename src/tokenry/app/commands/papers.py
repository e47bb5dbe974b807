"""tokenry papers: the methods that the library rebuilds."""

from typing import Annotated

import typer

from tokenry.app.terminal import AsJson, Seed, print_json, results, working


def papers(
    role: Annotated[
        str | None, typer.Option("--role", help='Only this role, such as [cyan]"sampler"[/].')
    ] = None,
    family: Annotated[str | None, typer.Option("--family", help="Only this family.")] = None,
    as_json: AsJson = False,
    seed: Seed = 0,
) -> None:
    """List the papers, and whether their claims held when they were last reproduced here.

    Examples:

    [cyan]tokenry papers[/]

    [cyan]tokenry papers --role sampler --json[/]
    """
    from tokenry.papers.catalogue import listing

    with working("reading the catalogue"):
        rows = listing(role=role, family=family)
    if as_json:
        print_json(rows)
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for title in ("no.", "key", "role", "held", "claim"):
        table.add_column(
            title, justify="right" if title == "no." else "left", no_wrap=title in ("no.", "key")
        )
    for row in rows:
        held = {True: "[green]yes[/]", False: "[red]no[/]", None: "[dim]not run[/]"}[row["held"]]
        seconds = "" if row["seconds"] is None else f" [dim]{row['seconds']:.0f} s[/]"
        number = "" if row["number"] is None else f"{row['number']:03}"
        about = f"{row['claim']}\n[dim]{row['title']} (arXiv {row['arxiv']})[/]"
        table.add_row(number, row["key"], row["role"], held + seconds, about)
    console = results()
    console.print(table)
