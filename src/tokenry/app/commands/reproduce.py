"""tokenry reproduce: run a paper's claim at laptop scale."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from tokenry.app.terminal import AsJson, Seed, notes, print_json, results, working
from tokenry.core.errors import InputError

JOURNAL = ".reproducing.json"
VERDICTS = {
    "held": "[green]held[/]",
    "not held": "[red]not held[/]",
    "undecided": "[yellow]undecided[/]",
}


def reproduce(
    keys: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY...]", help="Keys from [cyan]tokenry papers[/]."),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All papers, one after another.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run in the same folder.")
    ] = False,
    scale: Annotated[
        str,
        typer.Option(
            "--scale",
            help="full: what the verdict rests on. smoke: seconds, of which only the form counts. "
            "large: up to twenty minutes, where a paper has it.",
        ),
    ] = "full",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for KEY.json.")] = Path(
        "results"
    ),
    as_json: AsJson = False,
    seed: Seed = 0,
) -> None:
    """Run reproductions, at most three minutes each, and say whether the claims held.

    A claim has held when every inequality that it needs is surely true over the seeds, and not held
    when one is surely false; else it is undecided. The record of each, with every measurement, is
    written to [cyan]results/KEY.json[/]. With [cyan]--json[/] the record is printed: one object for
    one key, a list for several.

    Examples:

    [cyan]tokenry reproduce h2o[/]

    [cyan]tokenry reproduce tdpo awrs --seed 1 --output /tmp/results[/]

    [cyan]tokenry reproduce --all --resume[/] (two hours; may be stopped and gone on with)
    """
    from tokenry.core.checks import one_of
    from tokenry.papers import catalogue

    one_of("scale", scale, ("smoke", "full", "large"))
    if bool(keys) == everything:
        raise InputError("name the papers to reproduce, or pass --all; `tokenry papers` lists them")
    with working("reading the catalogue"):
        chosen = list(catalogue.papers()) if everything else list(dict.fromkeys(keys or ()))
        for key in chosen:  # all of them, before the first one takes its minutes
            catalogue.paper(key)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {output}: {error.strerror}") from None
    journal = Journal(output / JOURNAL, {"keys": chosen, "seed": seed, "scale": scale})
    done = journal.begin(resume)
    records = []
    for key in chosen:
        if key in done:
            continue
        with working(f"reproducing {key}"):
            record = catalogue.reproduce(key, seed, scale)  # type: ignore[arg-type]
        path = catalogue.write_result(record, output)
        journal.add(key)
        records.append(record)
        if not as_json:
            show(record)
        notes().print(f"[dim]written to {path}[/]")
    journal.end()
    if as_json:
        print_json(records[0] if len(chosen) == 1 and records else records)


class Journal:
    """Which papers of a run are done: a file that is there while the run is unfinished."""

    def __init__(self, path: Path, run: dict[str, Any]):
        self.path, self.run, self.done = path, run, list[str]()

    def begin(self, resume: bool) -> set[str]:
        """What is done already: nothing, unless the run that was interrupted goes on.

        InputError when another run was interrupted here than the one that is to go on.
        """
        if resume and self.path.is_file():
            state = json.loads(self.path.read_text())
            self.done = state.pop("done")
            if state != self.run:
                raise InputError(
                    f"the run that was interrupted in {self.path.parent} had --seed "
                    f"{state['seed']} --scale {state['scale']} and {len(state['keys'])} papers: "
                    "pass the same, or leave --resume out to start anew"
                )
        return set(self.done)

    def add(self, key: str) -> None:
        from tokenry.core.files import write_whole

        self.done.append(key)
        if len(self.run["keys"]) > 1:
            write_whole(self.path, json.dumps(self.run | {"done": self.done}))

    def end(self) -> None:
        self.path.unlink(missing_ok=True)


def show(record: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    console = results()
    word = record.get("verdict") or ("held" if record["held"] else "not held")
    console.print(f"[bold]{record['key']}[/]: {VERDICTS[word]} in {record['seconds']:.0f} s")
    about = Table.grid(padding=(0, 2))
    about.add_row("[dim]claim[/]", escape(record["claim"]))
    for check in record.get("checks") or ():
        true, count = check["seeds"]
        sure = f"{true} of {count}, {check['sure']:.0%} sure" if count > 1 else "computed"
        about.add_row(f"{VERDICTS[check['verdict']]}", f"{escape(check['text'])} [dim]({sure})[/]")
    if not record.get("checks"):
        about.add_row("[dim]needs[/]", escape(record["needs"]))
    if record.get("reason"):
        about.add_row("[dim]note[/]", escape(record["reason"]))
    console.print(about)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2))
    table.add_column("measured")
    table.add_column("value", justify="right")
    table.add_column("unit", style="dim")
    for row in record["measurements"]:
        label = row["label"] if row["seed"] is None else f"{row['label']} (seed {row['seed']})"
        table.add_row(escape(label), f"{row['value']:.4g}", escape(row["unit"]))
    console.print(table)
