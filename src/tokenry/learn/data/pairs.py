"""Preference data: JSON lines in TRL's formats -> `datasets.Dataset` -> TokenBatch fields.

    {"prompt": text, "chosen": text, "rejected": text}      used as they are
    {"prompt": [messages], "chosen": [messages], "rejected": [messages]}  through the chat template
    {"chosen": [messages], "rejected": [messages]}          the prompt is what both start with

Rows are checked and tokenized once, when they are read, so that an error can name the line and the
field. Prompt and completion are tokenized apart: their boundary is a token boundary.

Further columns of a row stay with it. What an objective needs as "token.weight" stands in the
columns `chosen_weight` and `rejected_weight`, one number per completion token (the end token
included); what it needs as "row.csr" in `chosen_csr` and `rejected_csr`, one number each.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tokenry.core.errors import InputError
from tokenry.learn.data.columns import as_dataset
from tokenry.learn.data.sources import numbered_rows, title

Truncate = Literal["error", "prompt", "completion"]
BadRows = Literal["error", "skip"]


@dataclass(frozen=True)
class Skipped:
    """Rows that were left out because they could not be used, and why the first of them was."""

    count: int = 0
    first: str | None = None


def preference_rows(
    source: str | Path | Iterable[dict[str, Any]],
    tokenizer: Any,
    *,
    max_length: int | None = None,
    truncate: Truncate = "error",
    as_chat: bool = False,
    bad_rows: BadRows = "error",
    prompts_only: bool = False,
) -> tuple[list[dict[str, Any]], Skipped]:
    """Rows with texts, prompt_ids, chosen_ids, rejected_ids and their own further columns.

    source: a JSONL file, or rows (dicts, a Dataset). max_length: tokens of prompt and completion
    together. truncate: what may go when a row is longer: nothing ("error"), the prompt's first
    tokens ("prompt", the same for both completions) or the completion's last ones ("completion").
    as_chat: put plain texts through the chat template as one user and one assistant message.
    bad_rows: "skip" leaves out the rows that cannot be used and counts them. prompts_only: what
    on-policy objectives want; completions, where there are any, are not looked at.

    Raises InputError naming the line (or row) and the field of the first row that cannot be used.
    """
    rows, skipped = [], Skipped()
    for place, row in numbered_rows(source):
        try:
            if prompts_only:
                texts = _prompt(row, tokenizer, place, as_chat)
                ids = {"prompt_ids": _prompt_ids(texts, tokenizer)}
            else:
                texts = _texts(row, tokenizer, place, as_chat)
                ids = _token_ids(texts, tokenizer, place, max_length, truncate)
        except InputError as error:
            if bad_rows != "skip":
                raise
            skipped = Skipped(skipped.count + 1, skipped.first or str(error))
            continue
        del texts["ends"]
        rows.append({**row, **texts, **ids, "place": place})
    if not rows:
        why = f": all {skipped.count} rows were skipped ({skipped.first})" if skipped.count else ""
        raise InputError(f"no preference pairs in {title(source)}{why}")
    return rows, skipped


def preference_dataset(
    source: str | Path | Iterable[dict[str, Any]], tokenizer: Any, **options: Any
) -> Any:
    """`preference_rows` as a Dataset, for objectives that need nothing but the pairs."""
    return as_dataset(preference_rows(source, tokenizer, **options)[0])


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


def _prompt(row: dict[str, Any], tokenizer: Any, place: str, as_chat: bool) -> dict[str, Any]:
    """The prompt alone, as text."""
    if row.get("prompt") is None:
        raise InputError(f'{place}: the field "prompt" is missing')
    prompt = _checked(row["prompt"], place, "prompt")
    if isinstance(prompt, str) and not as_chat:
        return {"prompt": prompt, "ends": False}
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    _check_template(tokenizer, place)
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return {"prompt": text, "ends": True}


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
    _check_template(tokenizer, place)
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


def _check_template(tokenizer: Any, place: str) -> None:
    if getattr(tokenizer, "chat_template", None) is None:
        raise InputError(
            f"{place} holds messages, and this tokenizer has no chat template; use texts instead"
        )


def _prompt_ids(texts: dict[str, Any], tokenizer: Any) -> list[int]:
    if texts["prompt"]:
        return tokenizer(texts["prompt"], add_special_tokens=not texts["ends"])["input_ids"]
    start = tokenizer.bos_token_id
    return [tokenizer.eos_token_id if start is None else start]


def _token_ids(
    texts: dict[str, Any], tokenizer: Any, place: str, max_length: int | None, truncate: Truncate
) -> dict[str, list[int]]:
    templated = texts["ends"]  # the template wrote the special tokens
    prompt = _prompt_ids(texts, tokenizer)
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
