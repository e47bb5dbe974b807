"""Rows -> a `datasets.Dataset`, with the further columns that an objective needs, checked."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tokenry.core.errors import InputError
from tokenry.learn.objective import PAIR

PARTS = re.compile(
    r"(prompt|chosen|rejected|completion)(_.*)?|ids|target|text|messages|place|label"
)
ROUNDING = 1e-3  # a log-probability of 0 in half precision


def as_dataset(
    rows: Sequence[dict[str, Any]],
    completions: Sequence[str] = PAIR,
    columns: Sequence[str] = (),
    data: Sequence[Mapping[str, Any]] | None = None,
) -> Any:
    """A `datasets.Dataset` of the texts, the ids of `completions`, and the columns that are needed.

    columns: "token.NAME" and "row.NAME". `{side}_target` goes along where a part of a completion
    does not count, and the reference's log-probabilities where all rows have them. data: what else
    belongs to each row (`further_columns`), kept as one JSON text: Arrow would make rows alike.
    Raises InputError naming the row and the field of a column that is missing, of the wrong length,
    not finite, or (when its name ends in "weight") negative.
    """
    from datasets import Dataset

    names = ("prompt", "chosen", "rejected")
    texts = [name for name in names if all(isinstance(row.get(name), str) for row in rows)]
    wanted = [
        *(texts if completions else texts[:1]),
        "prompt_ids",
        *(f"{side}_ids" for side in completions),
    ]
    wanted += _reference_columns(rows, completions)
    for row in rows:
        for side in completions:
            if not row.get(f"{side}_ids"):
                raise InputError(f'{row["place"]}: "{side}" has no tokens')
            for column in columns:
                check_column(row, side, *column.split(".", 1))
    wanted += [f"{side}_{column.split('.', 1)[1]}" for column in columns for side in completions]
    kept = [{name: row[name] for name in wanted} for row in rows]
    for fields, further in zip(kept, data or (), strict=bool(data)):
        fields["data"] = json.dumps(further)
    for side in completions:
        if any(f"{side}_target" in row for row in rows):
            for row, fields in zip(rows, kept, strict=True):
                every = [True] * len(row[f"{side}_ids"])
                fields[f"{side}_target"] = row.get(f"{side}_target", every)
    return Dataset.from_list(kept)


def further_columns(
    rows: Sequence[dict[str, Any]], named: Sequence[str] = (), every: bool = False
) -> list[dict[str, Any]]:
    """The columns of the rows that are no part of their texts, for whoever asks for them.

    named: those that must be possible to give, None in a row that lacks one. every: all others
    that JSON can hold, too.
    Raises InputError naming the row and the column when JSON cannot hold a named one.
    """
    other = {name for row in rows for name in row if not PARTS.fullmatch(name)} if every else set()
    other = {n for n in other if all(_is_json(row.get(n)) for row in rows)} - {*named}
    for row in rows:
        for name in named:
            if not _is_json(row.get(name)):
                kind = type(row[name]).__name__
                raise InputError(
                    f'{row["place"]}: a reward asks for the column "{name}", and its {kind} is '
                    "neither a text, a number, a list nor a mapping of them"
                )
    return [{name: row.get(name) for name in (*named, *sorted(other))} for row in rows]


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def check_reference(row: dict[str, Any], side: str, tokens: int) -> None:
    """Raise InputError unless a column of reference log-probabilities, if there is one, has a
    finite number, not above 0, for each completion token."""
    field = f"reference_{side}_logprob"
    values = row.get(field)
    if values is None:
        return
    if not isinstance(values, list | tuple) or len(values) != tokens:
        size = len(values) if isinstance(values, list | tuple) else type(values).__name__
        raise InputError(
            f'"{field}" must be a list with one log-probability for each of the {tokens} '
            f"completion tokens (end token included), got {size}: it was made with another "
            "tokenizer, template or maximum length; make it anew, or remove the column"
        )
    for position, value in enumerate(values):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or value > ROUNDING:
            raise InputError(
                f'"{field}" must be finite log-probabilities, 0 or below, got {value!r} '
                f"at {position}"
            )


def _reference_columns(rows: Sequence[dict[str, Any]], completions: Sequence[str]) -> list[str]:
    """The columns of reference log-probabilities, if every row has them all.

    Raises InputError when some rows have them and others not, or one side and not another.
    """
    names = [f"reference_{side}_logprob" for side in completions]
    lacking = [(row, name) for row in rows for name in names if row.get(name) is None]
    if not lacking:
        return names
    # which come with no columns of the data
    computed = set(completions) - {*PAIR, "completion"}
    if not computed and len(lacking) < len(names) * len(rows):
        row, name = lacking[0]
        raise InputError(
            f'{row["place"]}: "{name}" is missing, while other rows have their reference '
            "log-probabilities: give all of them or none"
        )
    return []


def check_column(row: dict[str, Any], side: str, kind: str, name: str) -> None:
    field = f"{side}_{name}"
    value = row.get(field)
    if value is None:
        raise InputError(
            f'{row["place"]}: the field "{field}" is missing, and this objective needs it'
        )
    if kind == "token" and (
        not isinstance(value, list | tuple) or len(value) != len(row[f"{side}_ids"])
    ):
        length = len(value) if isinstance(value, list | tuple) else type(value).__name__
        raise InputError(
            f'{row["place"]}: "{field}" must be a list with one number for each of the '
            f"{len(row[f'{side}_ids'])} completion tokens (end token included), got {length}"
        )
    numbers = value if isinstance(value, list | tuple) else [value]
    for position, number in enumerate(numbers):
        good = isinstance(number, int | float) and math.isfinite(number)
        if not good or (name.endswith("weight") and number < 0):
            bound = " and not negative" if name.endswith("weight") else ""
            raise InputError(
                f'{row["place"]}: "{field}" must be finite{bound}, got {number!r} at {position}'
            )
