"""tokenry demo: one real model inspected, constrained, accelerated and aligned."""

from pathlib import Path
from typing import Annotated

import typer

from tokenry.app.terminal import Model, Seed, check_writable, results


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="The page to write.")] = Path(
        "demo/report.html"
    ),
    model: Model = "smollm2",
    seed: Seed = 0,
) -> None:
    """Run the tour and write a report: one page, no outside resource, some minutes on a laptop.

    A real language model is inspected, constrained, accelerated and aligned token by token; every
    number in the report is measured in this run.

    Example: [cyan]tokenry demo --output demo/report.html[/]
    """
    check_writable(output)
    from tokenry.app.demo.run import run

    run(output, model, seed)
    results().print(f"report: {output.absolute()}", soft_wrap=True)
