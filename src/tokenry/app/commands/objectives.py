"""tokenry objectives: what `tokenry train` can minimise."""

import dataclasses
from fnmatch import fnmatch
from inspect import cleandoc
from typing import Annotated, Any

import typer

from tokenry.app.remembered import remembered
from tokenry.app.terminal import AsJson, Seed, plain_table, print_json, results, working
from tokenry.core.errors import InputError


def objectives(
    pattern: Annotated[
        str, typer.Argument(help="Only names that match, such as [cyan]*dpo*[/].")
    ] = "*",
    as_json: AsJson = False,
    seed: Seed = 0,
) -> None:
    """List the objectives that [cyan]tokenry train[/] knows, with what each one needs.

    Hyper-parameters go into the file given with --config, or on top of it in Python.

    Examples:

    [cyan]tokenry objectives[/]

    [cyan]tokenry objectives "*dpo*" --json[/]
    """
    with working("reading the catalogue"):
        rows = [row for row in remembered("objectives", listing) if fnmatch(row["name"], pattern)]
    if not rows:
        raise InputError(f"no objective matches {pattern!r}; tokenry objectives lists them all")
    if as_json:
        print_json(rows)
        return
    from rich.markup import escape

    table = plain_table()
    table.add_column("name", no_wrap=True)
    table.add_column("what it is, its hyper-parameters, what to bring")
    for row in rows:
        settings = ", ".join(f"{name}={value}" for name, value in row["hyperparameters"].items())
        bring = "".join(f"\n[yellow]{option}[/]" for option in row["bring"])
        table.add_row(row["name"], f"{row['summary']}\n[dim]{escape(settings)}[/]{bring}")
    results().print(table)


def listing() -> list[dict[str, Any]]:
    """One row per objective: name, summary, needs, what the user brings, hyper-parameters."""
    from tokenry.learn.objective import frozen_sources, is_on_policy, objective

    rows = []
    for key in objective.names():
        kind = objective[key]
        built = kind()
        bring = [f"--frozen {name}=MODEL" for name in frozen_sources(built)]
        if is_on_policy(built) and built.num_rewards:
            bring.append("--reward FILE.py:NAME")
        rows.append(
            {
                "name": key,
                "summary": cleandoc(kind.__doc__ or "").split("\n\n")[0].replace("\n", " "),
                "needs": list(built.needs),
                "bring": bring,
                "hyperparameters": {
                    field.name: plain(getattr(built, field.name))
                    for field in dataclasses.fields(built)
                },
            }
        )
    return rows


def plain(value: Any) -> Any:
    """A setting as JSON has it: numbers, truth values, None and lists as they are, others as
    text."""
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float) else str(value)
