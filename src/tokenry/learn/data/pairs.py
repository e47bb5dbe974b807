"""Preference data: rows of one prompt with a chosen and a rejected completion.

    {"prompt": text, "chosen": text, "rejected": text}      used as they are
    {"prompt": [messages], "chosen": [messages], "rejected": [messages]}  through the chat template
    {"chosen": ..., "rejected": ...}                        the prompt is what both start with

Further columns of a row stay with it. What an objective needs as "token.weight" stands in the
columns `chosen_weight` and `rejected_weight`, one number per completion token (the end token
included); what it needs as "row.csr" in `chosen_csr` and `rejected_csr`, one number each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenry.learn.data.columns import as_dataset
from tokenry.learn.data.rows import Skipped, read_rows
from tokenry.learn.objective import PAIR


def preference_rows(
    source: Any,
    tokenizer: Any,
    *,
    prompts_only: bool = False,
    completions: Sequence[str] = PAIR,
    **options: Any,
) -> tuple[list[dict[str, Any]], Skipped]:
    """Rows with texts, prompt_ids, chosen_ids, rejected_ids and their own further columns.

    source, options: as for `read_rows`. completions: those that a row must have. prompts_only:
    what on-policy objectives want; completions, where there are any, are not looked at.
    Raises InputError naming the place and the field of the first row that cannot be used.
    """
    kind = "prompt" if prompts_only else "preference"
    if options.get("kind", "auto") == "auto":
        options["kind"] = kind
    read = read_rows(source, tokenizer, accepts=(kind,), completions=completions, **options)
    return read.rows, read.skipped


def preference_dataset(source: Any, tokenizer: Any, **options: Any) -> Any:
    """`preference_rows` as a Dataset, for objectives that need nothing but the pairs."""
    return as_dataset(preference_rows(source, tokenizer, **options)[0])
