"""tokenry papers: the methods that the library rebuilds."""

from typing import Annotated, Any

import typer

from tokenry.app.terminal import AsJson, Seed, print_json, results
from tokenry.app.verb import require_use
from tokenry.core.errors import InputError


def papers(
    key: Annotated[
        str | None, typer.Argument(help="The whole record of this paper, with its measurements.")
    ] = None,
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

    [cyan]tokenry papers tdpo[/]

    [cyan]tokenry papers --role sampler --json[/]
    """
    from tokenry.papers import catalogue

    if key is not None:
        for option in ("--role", "--family"):
            require_use(option, False, "one paper is shown")
        record = catalogue.row(catalogue.paper(key))
        result = catalogue.read_result(key)
        if as_json:
            print_json({**record, "result": result})
        else:
            show(record, result)
        return
    rows = catalogue.listing(role=role, family=family)
    if not rows:
        raise InputError(f"no paper has the role {role!r} and the family {family!r}")
    if as_json:
        print_json(rows)
        return
    show_all(rows)


def show_all(rows: list[dict[str, Any]]) -> None:
    """One line for each paper, below its role."""
    from rich.table import Table
    from rich.text import Text

    from tokenry.app.commands.reproduce import VERDICTS

    # a title is cut where the terminal ends: the other columns are narrow and whole
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0), expand=True)
    table.add_column("no.", justify="right", no_wrap=True)
    table.add_column("key", no_wrap=True)
    table.add_column("claim", no_wrap=True)
    table.add_column("title", no_wrap=True, overflow="ellipsis", ratio=1)
    by_role: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_role.setdefault(row["role"], []).append(row)
    for role, members in by_role.items():
        table.add_row("", Text(role, style="bold cyan"))
        for row in members:
            word = row["verdict"] or {True: "held", False: "not held", None: None}[row["held"]]
            held = VERDICTS[word] if word else "[dim]-[/]"
            number = "" if row["number"] is None else f"{row['number']:03}"
            table.add_row(number, row["key"], held, Text(row["title"]))
    console = results()
    console.print(table)
    console.print(f"\n{len(rows)} papers; [cyan]tokenry papers KEY[/] shows one", soft_wrap=True)


def show(record: dict[str, Any], result: dict[str, Any] | None) -> None:
    """Everything about one paper."""
    from rich.markup import escape

    from tokenry.app.commands import reproduce

    console = results()
    number = "" if record["number"] is None else f"no. {record['number']:03}, "
    console.print(f"[bold]{escape(record['title'])}[/]")
    console.print(f"[dim]arXiv {record['arxiv']}; {number}{record['role']}, {record['family']}[/]")
    console.print()
    if result is not None:
        reproduce.show(result)
        return
    console.print(f"{escape(record['claim'])}\n")
    command = f"[cyan]tokenry reproduce {record['key']}[/]"
    console.print(f"Not reproduced yet: {command}", soft_wrap=True)
