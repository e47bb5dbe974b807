"""What a preference run moved: its report on pairs, token by token."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from tokenry.app.terminal import load, working
from tokenry.core.errors import InputError

COLUMNS = ("token", "side", "log ratio (nats)", "KL (nats)", "after")


@dataclass(frozen=True)
class RunReport:
    """The report of a run: its folder, the model that it began with, its reference (by name)."""

    folder: str
    model: str
    reference: str
    report: Any

    def to_dict(self) -> dict[str, Any]:
        names = {"run": self.folder, "model": self.model, "reference": self.reference}
        return names | self.report.to_dict()


def read_run(folder: str, pairs: Path | None) -> RunReport:
    """Score a run's pairs (or others) under the model that it left and under its reference.

    They are read as the run read its own: with its template, its lengths and its options. Rows that
    cannot be used are skipped and counted. Raises InputError when the folder is no finished run,
    when its data are gone and none are given, and when its model, reference or template is no
    longer what it was.
    """
    from tokenry.learn.data import read_source
    from tokenry.learn.data.rows import template_hash
    from tokenry.learn.record import read_record
    from tokenry.learn.report import preference_report

    record = read_record(Path(folder), ": give a text to compare two models on")
    if record.get("state") != "finished":
        state = record.get("state")
        raise InputError(
            f"the run in {folder} is not finished ({state}): go on with it by --resume"
        )
    if "reading" not in record:
        raise InputError(f"the run in {folder} does not say how it read its data: train it again")
    source = read_source(pairs or _data_of(record, folder))
    reading = {name: value for name, value in record["reading"].items() if name != "kind"}
    template = reading.pop("template")
    reading.pop("data_format", None)  # the report is about pairs, whatever was trained on
    trained = load(folder)
    if template_hash(trained.tokenizer) != template:
        raise InputError(
            f"the chat template in {folder} is not the one that the run read its data with"
        )
    options: dict[str, Any] = {**reading, "bad_rows": "skip"}
    reference, name = _reference_of(record, folder)
    beta = record["hyperparameters"].get("beta")
    with working("scoring the pairs"):
        report = preference_report(
            trained.model,
            trained.tokenizer,
            source,
            reference,
            beta=beta if isinstance(beta, int | float) else 1.0,
            **options,
        )
    return RunReport(folder, record["model"], name, report)


def _reference_of(record: dict[str, Any], folder: str) -> tuple[Any, str]:
    """The run's reference and its name; the model that it began with, if that is not kept."""
    from tokenry.learn.record import fingerprint
    from tokenry.learn.reference import FrozenModel, ReferenceKind, WithoutAdapter, load_reference

    kind = record["reference"]
    object_given = isinstance(kind, str) and kind.startswith("<")
    if not object_given and kind not in get_args(ReferenceKind):
        reference, whose = load_reference(kind), "reference"
        name = kind if isinstance(kind, str) else "the average of " + ", ".join(kind)
    else:
        name, whose = record["model"], "model"
        if not name:
            raise InputError(
                f"the run in {folder} was given its model as an object: there is nothing to load"
            )
        reference = FrozenModel(load(name).model)
    if fingerprint(reference.model) != record["fingerprints"].get(whose):
        raise InputError(f"{name} has other weights than when the run in {folder} began with it")
    if kind == "adapter" and record["adapter"] == "continue":
        return WithoutAdapter(reference.model), f"{name} without its adapter"
    return reference, name


def _data_of(record: dict[str, Any], folder: str) -> Path:
    from tokenry.learn.objective import is_on_policy
    from tokenry.learn.objective import objective as objectives

    file = record.get("data", {}).get("file")
    name = record["objective"]
    kind = objectives[name] if name in objectives.names() else None
    if kind is not None and (is_on_policy(kind) or kind.supervised):
        raise InputError(f"{name} did not learn from pairs: give some to report on with --pairs")
    if not file:
        raise InputError(f"the run in {folder} was not trained on a file: give pairs with --pairs")
    if not Path(file).exists():
        raise InputError(f"no such file: {file}, the run's data: give pairs with --pairs")
    return Path(file)


def summary(run: RunReport) -> list[str]:
    """The report in sentences."""
    report = run.report
    lines = [
        f"{len(report.pairs)} pairs: reward accuracy {report.accuracy:.0%}, margin "
        f"{report.margin:.3g}, KL from {run.reference} {report.kl:.3g} nats a token "
        f"(chosen {report.kl_chosen:.3g}, rejected {report.kl_rejected:.3g})"
    ]
    if report.skipped:
        lines.append(f"{report.skipped} rows skipped, the first: {report.first_skipped}")
    return lines


def largest_changes(report: Any) -> list[tuple[str, str, float, float, str]]:
    """The completion tokens, those whose log-probability changed most first."""
    return sorted(tokens_of(report), key=lambda row: -abs(row[2]))


def tokens_of(report: Any) -> list[tuple[str, str, float, float, str]]:
    """(token, side, log pi / pi_ref, KL, what stands before it) of every completion token."""
    rows = []
    for pair in report.pairs:
        for side in ("chosen", "rejected"):
            completion = getattr(pair, side)
            before = pair.prompt
            for token, log_ratio, kl in zip(
                completion.tokens, completion.log_ratio, completion.kl, strict=True
            ):
                rows.append((token, side, log_ratio, kl, before))
                before += token
    return rows
