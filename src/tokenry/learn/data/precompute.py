"""Precomputed columns of the data: computed once, before training.

Token rewards that the reference gives itself, weights of fields in a JSON answer, sampled anchors,
markers: whatever does not change while the policy is trained is a column of the dataset. An
objective that needs such columns has `precompute(rows, context)`; the context is what it works
with.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError
from tokenry.learn.reference import Reference


@dataclass(frozen=True)
class PrecomputeContext:
    """What `precompute` of an objective may use.

    Args:
        tokenizer: of the policy.
        model: the policy as it is before training.
        reference: the frozen model that the policy is held to, or None.
        frozen: further frozen models by name.
        seed: of any drawing.
        batch_size: rows scored at once.
    """

    tokenizer: Any
    model: Any = None
    reference: Reference | None = None
    frozen: Mapping[str, Reference] = field(default_factory=dict)
    seed: int = 0
    batch_size: int = 8

    def logprobs(
        self,
        source: Reference,
        prompts: Sequence[Sequence[int]],
        completions: Sequence[Sequence[int]],
    ) -> list[list[float]]:
        """log p of every completion token behind its prompt, ids joined and never re-tokenized."""
        logprobs: list[list[float]] = []
        device = _device(source)
        for start in range(0, len(prompts), self.batch_size):
            batch = joined_batch(
                prompts[start : start + self.batch_size],
                completions[start : start + self.batch_size],
            )
            logprob = source(batch.to(device), ("logprob",)).need("logprob").cpu()
            logprobs += [
                row[wanted].tolist() for row, wanted in zip(logprob, batch.target, strict=True)
            ]
        return logprobs

    def offsets(self, row: Mapping[str, Any], side: str) -> list[tuple[int, int]]:
        """(first, last + 1) characters of `row[side]` that each id of `{side}_ids` covers.

        A completion's tokens are found in the text of its prompt and itself, as they were made; a
        token that begins in the prompt covers the completion's part of it. An end token, and
        whatever else is not in the text, is an empty span at its end.
        """
        text, ids = row[side], list(row[f"{side}_ids"])
        prompt = row.get("prompt", "") if side != "prompt" else ""
        for before in dict.fromkeys((prompt, "")):  # sampled completions stand for themselves
            spans = _spans(self.tokenizer, before, text, ids)
            if spans is not None:
                return spans + [(len(text), len(text))] * (len(ids) - len(spans))
        raise InputError(f'the text of "{side}" is not what its token ids were made from')


def _spans(tokenizer: Any, before: str, text: str, ids: list[int]) -> list[tuple[int, int]] | None:
    """The spans in `text` of those first `ids` that are tokens of `before + text`, or None."""
    encoded = tokenizer(before + text, add_special_tokens=False, return_offsets_mapping=True)
    known, offsets = list(encoded["input_ids"]), encoded["offset_mapping"]
    size = len(before)
    first = next((number for number, (_, end) in enumerate(offsets) if end > size), len(known))
    for start in range(first, -1, -1):  # both completions of a pair begin with the same token
        shared = min(len(known) - start, len(ids))
        if shared and known[start : start + shared] == ids[:shared]:
            spans = offsets[start : start + shared]
            return [(max(0, int(a) - size), max(0, int(b) - size)) for a, b in spans]
    return None if known[first:] else []


def joined_batch(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    counts: Sequence[Sequence[bool] | None] | None = None,
) -> TokenBatch:
    """Rows of prompt and completion ids. The completions are the targets, or what counts of them.

    Args:
        counts: for each completion which of its tokens count, or None for all of them.
    """
    rows = [[*prompt, *answer] for prompt, answer in zip(prompts, completions, strict=True)]
    target = [
        [False] * len(prompt) + list(wanted or [True] * len(answer))
        for prompt, answer, wanted in zip(
            prompts, completions, counts or [None] * len(prompts), strict=True
        )
    ]
    return TokenBatch.from_ids(rows, target)


def precompute(
    objective: Any, rows: list[dict[str, Any]], context: PrecomputeContext
) -> list[dict]:
    """The rows with the columns that the objective computes; the rows given stay as they are."""
    if not rows:
        return rows
    computed = objective.precompute([copy.copy(row) for row in rows], context)
    if len(computed) != len(rows):
        raise InputError(
            f"{type(objective).__name__}.precompute turned {len(rows)} rows into {len(computed)}"
        )
    return computed


def _device(source: Any) -> Any:
    model = getattr(source, "model", None)
    return "cpu" if model is None else next(model.parameters()).device
