"""Rollouts: many sampled completions of many prompts at once, for analysis and for data.

    rollouts(model, prompts, copies=64, max_new_tokens=32, ends=[tokenizer.eos_token_id])

gives 64 completions (lists of ids, the end included) of each prompt. Prompts of any lengths are
read together; a row leaves the batch when it ends.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from tokenry.core.batch import TokenBatch
from tokenry.core.checks import in_range
from tokenry.core.errors import InputError
from tokenry.decode.sample import Processor, sample


def rollouts(
    model: Any,
    prompts: Sequence[Sequence[int]],
    copies: int = 1,
    *,
    max_new_tokens: int,
    ends: Collection[int] = (),
    temperature: float = 1.0,
    banned: Sequence[int | None] | None = None,
    seed: int | torch.Generator = 0,
    rows_per_batch: int = 1024,
) -> list[list[list[int]]]:
    """`copies` sampled completions of every prompt.

    Args:
        ends: ids that end a completion (they are kept as its last token).
        banned: for each prompt an id that its completions must not begin with, or None; the
            remaining distribution is renormalised.
        rows_per_batch: completions that grow together.
    """
    in_range("temperature", temperature, "(0, inf)")
    in_range("copies", copies, "[1, inf)", integer=True)
    in_range("max_new_tokens", max_new_tokens, "[1, inf)", integer=True)
    in_range("rows_per_batch", rows_per_batch, "[1, inf)", integer=True)
    if banned is not None and len(banned) != len(prompts):
        raise InputError(f"{len(banned)} banned tokens for {len(prompts)} prompts: give one each")
    if any(not len(prompt) for prompt in prompts):
        raise InputError("a prompt is empty: give at least one token to continue")
    generator = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed
    device = next(model.parameters()).device
    completions: list[list[list[int]]] = []
    at_once = max(1, rows_per_batch // max(copies, 1))
    for start in range(0, len(prompts), at_once):
        batch = TokenBatch.from_ids(prompts[start : start + at_once], padding_side="left")
        batch = batch.to(device)
        of = torch.arange(len(batch.ids)).repeat_interleave(copies)
        forbidden = [] if banned is None else [banned[start + prompt] for prompt in of.tolist()]
        flat = sample(
            model,
            batch.ids,
            batch.attention,
            of=of,
            max_new_tokens=max_new_tokens,
            ends=ends,
            temperature=temperature,
            processors=[_not_first(forbidden, batch.ids.shape[1])] if forbidden else [],
            generator=generator,
        )
        completions += [flat[i : i + copies] for i in range(0, len(flat), copies)]
    return completions


def _not_first(banned: Sequence[int | None], length: int) -> Processor:
    """Row n's first token, behind a prompt of `length` columns, is not banned[n]."""
    rows = [row for row, token in enumerate(banned) if token is not None]
    tokens = [token for token in banned if token is not None]

    def process(ids: Tensor, logits: Tensor) -> Tensor:
        if ids.shape[1] > length or not rows:
            return logits
        logits = logits.clone()
        logits[rows, tokens] = -math.inf
        if not bool((logits > -math.inf).any(-1).all()):
            raise InputError("the banned token is the only one that the model would write")
        return logits

    return process
