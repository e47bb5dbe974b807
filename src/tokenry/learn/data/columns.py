"""Rows -> a `datasets.Dataset`, with the further columns that an objective needs, checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tokenry.core.errors import InputError
from tokenry.learn.objective import PAIR_SIDES


def as_dataset(
    rows: Sequence[dict[str, Any]],
    sides: Sequence[str] = PAIR_SIDES,
    columns: Sequence[str] = (),
) -> Any:
    """A `datasets.Dataset` of the texts, the ids of `sides`, and the columns that are needed.

    columns: "token.NAME" and "row.NAME". Raises InputError naming the row and the field of a column
    that is missing, of the wrong length, not finite, or (when its name ends in "weight") negative.
    """
    from datasets import Dataset

    texts = [name for name in ("prompt", "chosen", "rejected") if name in rows[0]]
    wanted = [*(texts if sides else texts[:1]), "prompt_ids", *(f"{side}_ids" for side in sides)]
    references = [f"reference_{side}_logprob" for side in sides]
    wanted += [name for name in references if all(row.get(name) is not None for row in rows)]
    for row in rows:
        for side in sides:
            if not row.get(f"{side}_ids"):
                raise InputError(f'{row["place"]}: "{side}" has no tokens')
            for column in columns:
                check_column(row, side, *column.split(".", 1))
    wanted += [f"{side}_{column.split('.', 1)[1]}" for column in columns for side in sides]
    return Dataset.from_list([{name: row[name] for name in wanted} for row in rows])


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
    for place, number in enumerate(numbers):
        good = isinstance(number, int | float) and math.isfinite(number)
        if not good or (name.endswith("weight") and number < 0):
            bound = " and not negative" if name.endswith("weight") else ""
            raise InputError(
                f'{row["place"]}: "{field}" must be finite{bound}, got {number!r} at {place}'
            )
