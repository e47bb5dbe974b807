"""tokenry data: sample files for every command."""

from pathlib import Path
from typing import Annotated

import typer

from tokenry.app.terminal import AsJson, Seed, plain_table, print_json, results
from tokenry.app.verb import Debug, Verb, with_debug
from tokenry.core.errors import InputError

app = typer.Typer(rich_markup_mode="rich", pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
def data(
    context: typer.Context, as_json: AsJson = False, seed: Seed = 0, debug: Debug = False
) -> None:
    """List the sample files that come with Tokenry, or copy them.

    They bear the names that the documentation uses, so that its commands run as they stand.

    Examples:

    [cyan]tokenry data[/]

    [cyan]tokenry data copy[/]

    [cyan]tokenry data copy prefs.jsonl heldout.jsonl --output samples[/]
    """
    if context.invoked_subcommand is not None:
        if as_json:
            raise InputError(f"--json has no effect before {context.invoked_subcommand}")
        return
    from tokenry.tasks.samples import SAMPLES, sample_file

    rows = [
        {"name": name, "about": about, "path": str(sample_file(name))}
        for name, about in SAMPLES.items()
    ]
    if as_json:
        print_json(rows)
        return
    table = plain_table()
    table.add_column("name", no_wrap=True)
    table.add_column("what it is")
    for row in rows:
        table.add_row(row["name"], row["about"])
    console = results()
    console.print(table)
    console.print("\n[cyan]tokenry data copy[/] copies them here", soft_wrap=True)


@app.command(cls=Verb)
@with_debug
def copy(
    names: Annotated[
        list[str] | None, typer.Argument(help="Names from [cyan]tokenry data[/]. Default: all.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder.")] = Path("."),
    seed: Seed = 0,
) -> None:
    """Copy sample files; nothing is overwritten.

    Example: [cyan]tokenry data copy prefs.jsonl[/]
    """
    from tokenry.tasks.samples import copy_samples

    for path in copy_samples(output, names or ()):
        print(path)
