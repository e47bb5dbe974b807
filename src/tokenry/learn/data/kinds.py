"""Kinds of rows, in TRL's published formats, and which of them a row is.

    kind        fields                                    what becomes of it
    text        text                                      every token counts
    messages    messages                                  what the assistant says counts
    completion  prompt, completion                        the completion counts
    unpaired    prompt, completion, label (true, false)   the completion counts
    preference  chosen, rejected, with or without prompt  both completions count
    prompt      prompt                                    is to be answered

Wherever a text can stand, messages can stand, and both in one row: a prompt's text is then a user's
message, a completion's an assistant's. `tools` (JSON schemas) and `chat_template_kwargs` of a row
go to the chat template.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal, get_args

from tokenry.core.errors import InputError

Kind = Literal["text", "messages", "completion", "unpaired", "preference", "prompt"]
KINDS: tuple[str, ...] = get_args(Kind)
SUPERVISED = ("text", "messages", "completion")
OTHERS = {  # fields of other formats, and what to do about them
    "conversations": 'rename "conversations" to "messages", "from" to "role", "value" to "content"',
    "instruction": 'rename "instruction" (with "input") to "prompt", "output" to "completion"',
    "question": 'rename "question" to "prompt", and the answers to "chosen" and "rejected"',
}


def kind_of(row: Mapping[str, Any], place: str, accepts: Collection[str] = KINDS) -> str:
    """The kind of a row among those accepted.

    Raises InputError when its fields are of none of them, or of several.
    """
    kinds = _kinds(row)
    fitting = [kind for kind in kinds if kind in accepts]
    if len(fitting) == 1:
        return fitting[0]
    names = _names(row)
    if fitting:
        raise InputError(
            f"{place} can be read as {' or as '.join(fitting)} (its fields: {names}): say which, "
            "by kind (in the settings of a run: data_format)"
        )
    wanted = " or ".join(" + ".join(_fields(kind)) for kind in accepts)
    raise InputError(
        f"{place} has the fields {names}"
        + (f", which are {kinds[0]} data" if kinds else "")
        + f"; wanted: {wanted}{_hint(row)}"
    )


def check_kind(kind: str, accepts: Collection[str]) -> None:
    """Raise InputError for a kind that does not exist or is not accepted here."""
    if kind != "auto" and kind not in accepts:
        known = " or ".join(["auto", *accepts])
        raise InputError(f"kind is {kind!r}; for these data it must be {known}")


def check_fields(row: Mapping[str, Any], kind: str, completions: Collection[str]) -> None:
    """Raise InputError naming the first field that a row of this kind lacks."""
    for name in completions if kind == "preference" else _fields(kind):
        if row.get(name) is None:
            raise InputError(
                f'the field "{name}" is missing; the row has {_names(row)}{_hint(row)}'
            )


def _kinds(row: Mapping[str, Any]) -> list[str]:
    def has(name: str) -> bool:
        return row.get(name) is not None

    kinds = [kind for kind in ("text", "messages") if has(kind)]
    if has("completion"):
        kinds.append("unpaired" if has("label") else "completion")
    if has("chosen") or has("rejected"):
        kinds.append("preference")
    return [*kinds, "prompt"] if has("prompt") and not kinds else kinds


def _names(row: Mapping[str, Any]) -> str:
    return ", ".join(f'"{name}"' for name, value in row.items() if value is not None) or "none"


def _hint(row: Mapping[str, Any]) -> str:
    """What to do about rows of another format, if it is known."""
    return next((f"; {hint}" for name, hint in OTHERS.items() if row.get(name) is not None), "")


def _fields(kind: str) -> tuple[str, ...]:
    return {
        "completion": ("prompt", "completion"),
        "unpaired": ("prompt", "completion", "label"),
        "preference": ("chosen", "rejected"),
    }.get(kind, (kind,))
