"""What a preference run moved: its report on pairs, token by token, for the terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenry.app.terminal import load, print_json, results, working
from tokenry.core.errors import InputError


def report_run(folder: str, pairs: Path | None, rows: int, as_json: bool) -> None:
    """Score a run's pairs (or others) under the model that it left and the one that it began with.

    Raises InputError when the folder is no finished run, or its data are gone and none are given.
    """
    record = read_record(Path(folder))
    source = pairs or _data_of(record, folder)
    if not source.is_file():
        raise InputError(f"no such file: {source}; give pairs with --pairs")
    from tokenry.learn.reference import FrozenModel
    from tokenry.learn.report import preference_report

    base, trained = load(record["model"]), load(folder)
    beta = record["hyperparameters"].get("beta")
    with working("scoring the pairs"):
        report = preference_report(
            trained.model,
            trained.tokenizer,
            source,
            FrozenModel(base.model),
            beta=beta if isinstance(beta, int | float) else 1.0,
            bad_rows="skip",
        )
    if as_json:
        print_json({"run": folder, "model": record["model"], **report.to_dict()})
        return
    show(report, record, rows)


def read_record(folder: Path) -> dict[str, Any]:
    """The run.json of a finished run."""
    path = folder / "run.json"
    if not path.is_file():
        raise InputError(
            f"{folder} is not the folder of a training run (it has no run.json): give a text to "
            "compare two models on"
        )
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not JSON: {error.msg}") from None
    if record.get("state") != "finished":
        raise InputError(f"the run in {folder} is not finished: go on with it by --resume")
    return record


def _data_of(record: dict[str, Any], folder: str) -> Path:
    file = record.get("data", {}).get("file")
    if not file:
        raise InputError(f"the run in {folder} was not trained on a file: give pairs with --pairs")
    return Path(file)


def show(report: Any, record: dict[str, Any], rows: int) -> None:
    """The summary, and the tokens whose log-probability changed most."""
    from rich.table import Table
    from rich.text import Text

    console = results()
    console.print(
        f"{len(report.pairs)} pairs: reward accuracy {report.accuracy:.0%}, margin "
        f"{report.margin:.3g}, KL from {record['model']} {report.kl:.3g} nats a token "
        f"(chosen {report.kl_chosen:.3g}, rejected {report.kl_rejected:.3g})"
    )
    moved = sorted(tokens_of(report), key=lambda row: -abs(row[2]))[:rows]
    if not moved:
        return
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for title in ("token", "side", "log ratio (nats)", "KL (nats)", "after"):
        table.add_column(title, justify="right" if "nats" in title else "left")
    for token, side, log_ratio, kl, before in moved:
        colour = "green" if log_ratio > 0 else "red"
        table.add_row(
            Text(repr(token)),
            side,
            f"[{colour}]{log_ratio:+.3f}[/]",
            f"{kl:.3f}",
            Text(before[-40:].replace("\n", " "), style="dim"),
        )
    console.print(table)


def tokens_of(report: Any) -> list[tuple[str, str, float, float, str]]:
    """(token, side, log pi / pi_ref, KL, what stands before it) of every completion token."""
    found = []
    for pair in report.pairs:
        for side in ("chosen", "rejected"):
            completion = getattr(pair, side)
            before = pair.prompt
            for token, log_ratio, kl in zip(
                completion.tokens, completion.log_ratio, completion.kl, strict=True
            ):
                found.append((token, side, log_ratio, kl, before))
                before += token
    return found
