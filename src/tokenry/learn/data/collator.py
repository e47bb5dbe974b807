"""Dataset rows -> the fields of a TokenBatch -> the TokenBatch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError
from tokenry.learn.objective import PAIR


@dataclass(frozen=True)
class PreferenceCollator:
    """Dataset rows -> the fields of a TokenBatch: a block of rows for each side.

    completions: which of a row, in this order. prompts: also the prompts alone, left-padded, for
    rollouts; without completions they are all there is. columns: "token.NAME" and "row.NAME", which
    become "column.NAME" [rows, T], [rows].
    Rows with "data" (JSON, see `as_dataset`) give "data", a list of mappings.
    The row's `{side}_target` says which of the completion's tokens count; without it, all do.
    `reference_logprob` is there when the rows carry precomputed log-probabilities.
    """

    pad_id: int
    padding_side: Literal["left", "right"] = "right"
    completions: tuple[str, ...] = PAIR
    columns: tuple[str, ...] = ()
    prompts: bool = False

    @classmethod
    def of(
        cls,
        tokenizer: Any,
        completions: Sequence[str] = PAIR,
        columns: Sequence[str] = (),
        prompts: bool = False,
    ) -> PreferenceCollator:
        pad_id = tokenizer.pad_token_id
        known = next((x for x in (pad_id, tokenizer.eos_token_id) if x is not None), 0)
        return cls(known, completions=tuple(completions), columns=tuple(columns), prompts=prompts)

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        if self.prompts or not self.completions:
            prompts = TokenBatch.from_ids(
                [row["prompt_ids"] for row in rows], pad_id=self.pad_id, padding_side="left"
            )
            fields = {"prompts": prompts.ids, "prompts_attention": prompts.attention}
        if rows and "data" in rows[0]:
            fields["data"] = [json.loads(row["data"]) for row in rows]
        if not self.completions:
            return fields
        ids, targets, answers = [], [], []
        for side in self.completions:
            for row in rows:
                prompt, completion = row["prompt_ids"], row[f"{side}_ids"]
                ids.append([*prompt, *completion])
                counts = row.get(f"{side}_target") or [True] * len(completion)
                targets.append([False] * len(prompt) + list(counts))
                answers.append([False] * len(prompt) + [True] * len(completion))
        batch = TokenBatch.from_ids(
            ids,
            targets,
            pad_id=self.pad_id,
            padding_side=self.padding_side,
            group=[*range(len(rows))] * len(self.completions),
        )
        assert batch.group is not None
        layout = {"pad_id": self.pad_id, "padding_side": self.padding_side}
        behind = TokenBatch.from_ids(ids, answers, **layout).target  # [rows, T]
        fields |= {
            "ids": batch.ids,
            "attention": batch.attention,
            "target": batch.target,
            "group": batch.group,
        }
        for column in self.columns:
            kind, name = column.split(".", 1)
            values = [row[f"{side}_{name}"] for side in self.completions for row in rows]
            fields[f"column.{name}"] = (
                _per_token(values, behind, batch.target, name)
                if kind == "token"
                else torch.tensor(values).float()
            )
        references = [f"reference_{side}_logprob" for side in self.completions]
        if all(row.get(name) is not None for row in rows for name in references):
            logprobs = [row[name] for name in references for row in rows]
            fields["reference_logprob"] = _per_token(
                logprobs, behind, batch.target, "reference_logprob"
            )
        return fields


def batch_of(fields: dict[str, Any]) -> TokenBatch:
    """The TokenBatch of a collator's fields."""
    columns = {
        name.removeprefix("column."): value
        for name, value in fields.items()
        if name.startswith("column.")
    }
    return TokenBatch(
        fields["ids"], fields["attention"], fields["target"], fields.get("group"), columns
    )


def _per_token(
    values: Sequence[Sequence[float]], completion: Tensor, target: Tensor, name: str
) -> Tensor:
    """Numbers of completion tokens at their places, [rows, T]; 0 elsewhere and on what does not
    count."""
    for row, count in zip(values, completion.sum(-1).tolist(), strict=True):
        if len(row) != count:
            raise InputError(
                f"{len(row)} values of {name} for {count} completion tokens: they were made with "
                "another tokenizer or maximum length"
            )
    placed = torch.zeros(completion.shape)
    placed[completion] = torch.tensor([float(value) for row in values for value in row])
    return placed.masked_fill(~target, 0.0)
