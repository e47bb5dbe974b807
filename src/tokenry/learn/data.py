"""Preference data: JSON lines in TRL's formats -> `datasets.Dataset` -> TokenBatch fields.

    {"prompt": text, "chosen": text, "rejected": text}      used as they are
    {"prompt": [messages], "chosen": [messages], "rejected": [messages]}  through the chat template
    {"chosen": [messages], "rejected": [messages]}          the prompt is what both start with

Rows are checked and tokenized once, when they are read, so that an error can name the line and the
field. Prompt and completion are tokenized apart: their boundary is a token boundary.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError

Truncate = Literal["error", "prompt", "completion"]


def preference_dataset(
    source: str | Path | Iterable[dict[str, Any]],
    tokenizer: Any,
    *,
    max_length: int | None = None,
    truncate: Truncate = "error",
    as_chat: bool = False,
) -> Any:
    """A `datasets.Dataset` with the texts and the columns prompt_ids, chosen_ids, rejected_ids.

    source: a JSONL file, or rows (dicts, a Dataset). max_length: tokens of prompt and completion
    together. truncate: what may go when a row is longer: nothing ("error"), the prompt's first
    tokens ("prompt", the same for both completions) or the completion's last ones ("completion").
    as_chat: put plain texts through the chat template as one user and one assistant message.

    Raises InputError naming the line (or row) and the field of the first row that cannot be used.
    """
    from datasets import Dataset

    rows = []
    for place, row in _numbered(source):
        texts = _texts(row, tokenizer, place, as_chat)
        rows.append(texts | _token_ids(texts, tokenizer, place, max_length, truncate))
        for column in ("reference_chosen_logprob", "reference_rejected_logprob"):
            if row.get(column) is not None:
                rows[-1][column] = row[column]
    if not rows:
        raise InputError(f"no preference pairs in {_title(source)}")
    for row in rows:
        del row["ends"]
    return Dataset.from_list(rows)


@dataclass(frozen=True)
class PreferenceCollator:
    """Rows of `preference_dataset` -> the fields of a TokenBatch, chosen rows first.

    `reference_logprob` [2B, T] is there when the rows carry precomputed log-probabilities.
    """

    pad_id: int
    padding_side: Literal["left", "right"] = "right"

    @classmethod
    def of(cls, tokenizer: Any) -> PreferenceCollator:
        pad_id = tokenizer.pad_token_id
        return cls(next((x for x in (pad_id, tokenizer.eos_token_id) if x is not None), 0))

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        ids, targets = [], []
        for side in ("chosen", "rejected"):
            for row in rows:
                prompt, completion = row["prompt_ids"], row[f"{side}_ids"]
                ids.append([*prompt, *completion])
                targets.append([False] * len(prompt) + [True] * len(completion))
        group = [*range(len(rows))] * 2
        batch = TokenBatch.from_ids(
            ids, targets, pad_id=self.pad_id, padding_side=self.padding_side, group=group
        )
        assert batch.group is not None
        fields = {
            "ids": batch.ids,
            "attention": batch.attention,
            "target": batch.target,
            "group": batch.group,
        }
        if all(row.get("reference_chosen_logprob") is not None for row in rows):
            logprob = torch.zeros(batch.shape)
            values = [
                value
                for side in ("chosen", "rejected")
                for row in rows
                for value in row[f"reference_{side}_logprob"]
            ]
            if len(values) != int(batch.target.sum()):
                raise InputError(
                    f"{len(values)} precomputed log-probabilities for {int(batch.target.sum())} "
                    "completion tokens: they were made with another tokenizer or maximum length"
                )
            logprob[batch.target] = torch.tensor(values)
            fields["reference_logprob"] = logprob
        return fields


def read_jsonl(path: str | Path) -> list[tuple[int, dict[str, Any]]]:
    """The objects of a JSON lines file with their line numbers; empty lines are skipped."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    found = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(
                f"{path}, line {number} is not JSON: {error.msg} at column {error.colno}"
            ) from None
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number} must be a JSON object, got {line[:40]!r}")
        found.append((number, row))
    return found


def _title(source: Any) -> str:
    return str(source) if isinstance(source, str | Path) else "the rows given"


def _numbered(source: Any) -> Iterable[tuple[str, dict[str, Any]]]:
    if isinstance(source, str | Path):
        for number, row in read_jsonl(source):
            yield f"{source}, line {number}", row
    else:
        for number, row in enumerate(source):
            yield f"row {number}", dict(row)


def _texts(row: dict[str, Any], tokenizer: Any, place: str, as_chat: bool) -> dict[str, Any]:
    """prompt, chosen and rejected as text, and whether the completions already end themselves."""
    fields = {}
    for name in ("prompt", "chosen", "rejected"):
        if row.get(name) is not None:
            fields[name] = _checked(row[name], place, name)
        elif name != "prompt" or isinstance(row.get("chosen"), str):
            raise InputError(f'{place}: the field "{name}" is missing')
    kinds = {name: type(value) for name, value in fields.items()}
    if len(set(kinds.values())) > 1:
        raise InputError(
            f"{place}: prompt, chosen and rejected must be all texts or all messages, got "
            + ", ".join(f"{name}: {kind.__name__}" for name, kind in kinds.items())
        )
    if kinds["chosen"] is str and as_chat:
        roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
        fields = {name: [{"role": roles[name], "content": text}] for name, text in fields.items()}
    elif "prompt" not in fields:
        fields = _split_prompt(fields["chosen"], fields["rejected"], place)
    if fields["chosen"] == fields["rejected"]:
        raise InputError(
            f'{place}: "chosen" and "rejected" are equal, so the pair says nothing; remove it'
        )
    for name in ("chosen", "rejected"):
        if not _content(fields[name]).strip():
            raise InputError(f'{place}: "{name}" is an empty completion')
    if isinstance(fields["chosen"], str):
        return fields | {"ends": False}
    return _render(fields, tokenizer, place) | {"ends": True}


def _checked(value: Any, place: str, name: str) -> Any:
    if isinstance(value, str):
        return value
    well_formed = isinstance(value, list) and all(
        isinstance(message, dict)
        and isinstance(message.get("role"), str)
        and isinstance(message.get("content"), str)
        for message in value
    )
    if not well_formed:
        raise InputError(
            f'{place}: "{name}" must be a text or a list of messages with "role" and "content", '
            f"got {str(value)[:60]!r}"
        )
    return [{"role": message["role"], "content": message["content"]} for message in value]


def _content(completion: Any) -> str:
    if isinstance(completion, str):
        return completion
    return "".join(message["content"] for message in completion)


def _split_prompt(
    chosen: list[dict[str, str]], rejected: list[dict[str, str]], place: str
) -> dict[str, Any]:
    """The messages that both conversations start with are the prompt."""
    if chosen == rejected:
        return {"prompt": [], "chosen": chosen, "rejected": rejected}
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    if shared == 0:
        raise InputError(
            f'{place}: without a "prompt" field, "chosen" and "rejected" must start with the same '
            "message"
        )
    return {"prompt": chosen[:shared], "chosen": chosen[shared:], "rejected": rejected[shared:]}


def _render(fields: dict[str, Any], tokenizer: Any, place: str) -> dict[str, Any]:
    """Messages as text: what the chat template writes before and for the answer."""
    if getattr(tokenizer, "chat_template", None) is None:
        raise InputError(
            f"{place} holds messages, and this tokenizer has no chat template; use texts instead"
        )
    prompt = tokenizer.apply_chat_template(
        fields["prompt"], tokenize=False, add_generation_prompt=True
    )
    texts = {"prompt": prompt}
    for name in ("chosen", "rejected"):
        whole = tokenizer.apply_chat_template([*fields["prompt"], *fields[name]], tokenize=False)
        if not whole.startswith(prompt):
            raise InputError(
                f'{place}: the chat template does not continue the prompt with "{name}"; its first '
                "message must be the assistant's"
            )
        texts[name] = whole[len(prompt) :].rstrip()
    return texts


def _token_ids(
    texts: dict[str, Any], tokenizer: Any, place: str, max_length: int | None, truncate: Truncate
) -> dict[str, list[int]]:
    templated = texts["ends"]  # the template wrote the special tokens
    prompt = tokenizer(texts["prompt"], add_special_tokens=not templated)["input_ids"]
    if not texts["prompt"]:
        start = tokenizer.bos_token_id
        prompt = [tokenizer.eos_token_id if start is None else start]
    sides = {}
    for name in ("chosen", "rejected"):
        completion = tokenizer(texts[name], add_special_tokens=False)["input_ids"]
        end = tokenizer.eos_token_id
        sides[name] = completion if templated or end is None else [*completion, end]
    if max_length is not None:
        prompt, sides = _fit(prompt, sides, max_length, truncate, place)
    if sides["chosen"] == sides["rejected"]:
        raise InputError(
            f'{place}: "chosen" and "rejected" are the same tokens within max_length={max_length}'
        )
    return {"prompt_ids": prompt, **{f"{name}_ids": ids for name, ids in sides.items()}}


def _fit(
    prompt: list[int],
    sides: dict[str, list[int]],
    max_length: int,
    truncate: Truncate,
    place: str,
) -> tuple[list[int], dict[str, list[int]]]:
    """The same rules as TokenBatch.from_pairs, with one prompt for both completions."""
    longest = max(sides, key=lambda name: len(sides[name]))
    excess = len(prompt) + len(sides[longest]) - max_length
    if excess <= 0:
        return prompt, sides
    if truncate == "prompt" and excess < len(prompt):
        return prompt[excess:], sides
    if truncate == "completion" and len(prompt) < max_length:
        return prompt, {name: ids[: max_length - len(prompt)] for name, ids in sides.items()}
    field = "prompt" if len(prompt) >= max_length else longest
    raise InputError(
        f'{place}: "{field}" is too long: prompt {len(prompt)} and {longest} {len(sides[longest])} '
        f'tokens are {excess} more than max_length={max_length}, and truncate="{truncate}" cannot '
        "remove them; shorten the text or raise max_length"
    )
