"""What a model can take: its embedding's rows and its positions, checked before any work.

A token beyond the embedding or a row beyond learned positions is an IndexError deep in the model
(on a GPU, a failed assertion); beyond rotary positions it is quietly another model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenry.core.errors import InputError
from tokenry.learn.data import Skipped
from tokenry.model import compat
from tokenry.model.score import unwrap


@dataclass(frozen=True)
class Limits:
    """vocabulary: token ids below it are embedded. positions: tokens of a row, None: any."""

    vocabulary: int
    positions: int | None

    @classmethod
    def of(cls, model: Any) -> Limits:
        plain = unwrap(model)
        return cls(len(plain.get_input_embeddings().weight), compat.window(plain))

    def check_padding(self, pad_id: int) -> None:
        """Raise InputError when the padding token has no embedding."""
        if pad_id >= self.vocabulary:
            raise InputError(
                f"the padding token has the id {pad_id}, and the model embeds {self.vocabulary} "
                "tokens: set tokenizer.pad_token to a token that it has (the end token will do), "
                "or resize the embedding"
            )

    def check_row(
        self, row: Mapping[str, Any], completions: Sequence[str], new_tokens: int = 0
    ) -> None:
        """Raise InputError naming the row and the field that the model cannot take.

        new_tokens: how many are to be sampled behind the prompt.
        """
        fields = {"prompt": row["prompt_ids"]} | {side: row[f"{side}_ids"] for side in completions}
        for name, ids in fields.items():
            highest = max(ids, default=0)
            if highest >= self.vocabulary:
                raise InputError(
                    f'{row["place"]}: "{name}" has the token {highest}, and the model embeds '
                    f"{self.vocabulary} tokens: its tokenizer is another one, or has tokens added"
                )
        longest = max([new_tokens, *(len(row[f"{side}_ids"]) for side in completions)])
        length = len(row["prompt_ids"]) + longest
        if self.positions is not None and length > self.positions:
            parts = f"prompt {len(row['prompt_ids'])} and completion {longest} tokens"
            raise InputError(
                f"{row['place']}: {parts} are more than the model's {self.positions} positions; "
                f"shorten the row, or set max_length to at most {self.positions} and truncate"
            )


def fitting(
    rows: Sequence[dict[str, Any]],
    limits: Limits,
    completions: Sequence[str],
    skipped: Skipped,
    *,
    bad_rows: str = "error",
    new_tokens: int = 0,
    max_length: int | None = None,
    truncate: str = "error",
) -> tuple[list[dict[str, Any]], Skipped]:
    """The rows that the model can take, and what was skipped before and here.

    new_tokens: sampled behind prompts; `max_length` then counts both, and truncate="prompt" takes
    a prompt's first tokens away. Raises InputError for the first bad row unless it is skipped.
    """
    kept = []
    for row in rows:
        try:
            if new_tokens and max_length is not None:
                row = _shortened(row, max_length - new_tokens, new_tokens, truncate)
            limits.check_row(row, completions, new_tokens)
        except InputError as error:
            if bad_rows != "skip":
                raise
            skipped = Skipped(skipped.count + 1, skipped.first or str(error))
            continue
        kept.append(row)
    if not kept:
        raise InputError(f"no row can be used: all were skipped ({skipped.first})")
    return kept, skipped


def _shortened(row: dict[str, Any], size: int, new_tokens: int, truncate: str) -> dict[str, Any]:
    excess = len(row["prompt_ids"]) - size
    if excess <= 0:
        return row
    if truncate == "prompt" and size > 0:
        return row | {"prompt_ids": row["prompt_ids"][excess:]}
    raise InputError(
        f'{row["place"]}: "prompt" has {len(row["prompt_ids"])} tokens, and with {new_tokens} new '
        f'ones that is more than max_length={size + new_tokens}; truncate="prompt" shortens it, if '
        "max_length is above max_new_tokens"
    )
