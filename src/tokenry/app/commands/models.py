"""tokenry models: the models that have a short name."""

from typing import Annotated

import typer

from tokenry.app.terminal import AsJson, Seed, plain_table, print_json, results
from tokenry.app.verb import Debug, Verb, with_debug
from tokenry.core.errors import InputError

app = typer.Typer(rich_markup_mode="rich", pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
def models(
    context: typer.Context, as_json: AsJson = False, seed: Seed = 0, debug: Debug = False
) -> None:
    """List the models with a short name, or fetch one.

    A hub id (owner/name) or a local folder works everywhere in place of a name.

    Examples:

    [cyan]tokenry models[/]

    [cyan]tokenry models pull gemma3-270m[/]
    """
    if context.invoked_subcommand is not None:
        if as_json:
            raise InputError(f"--json has no effect before {context.invoked_subcommand}")
        return
    from tokenry.model.hub import DEFAULT_MODEL, NAMED_MODELS, home, is_cached

    rows = [
        {
            "name": model.name,
            "title": model.title,
            "cached": is_cached(model.name),
            "download_bytes": model.size,
            "licence": model.licence,
            "default": model.name == DEFAULT_MODEL,
            "path": str(home() / "models" / model.name),
        }
        for model in NAMED_MODELS.values()
    ]
    if as_json:
        print_json(rows)
        return
    table = plain_table("name", "model", "download", "licence", "here", numbers=("download",))
    for row in rows:
        name = f"{row['name']} [dim](default)[/]" if row["default"] else row["name"]
        size = f"{row['download_bytes'] / 1e6:.0f} MB"
        table.add_row(name, row["title"], size, row["licence"], "yes" if row["cached"] else "no")
    console = results()
    console.print(table)


@app.command(cls=Verb)
@with_debug
def pull(
    name: Annotated[str, typer.Argument(help="A name from [cyan]tokenry models[/].")],
    seed: Seed = 0,
) -> None:
    """Fetch a model, check it and convert it, once; later uses need no network.

    Example: [cyan]tokenry models pull smollm2[/]
    """
    from tokenry.model.hub import folder

    print(folder(name))
