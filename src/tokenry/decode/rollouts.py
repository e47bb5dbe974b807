"""Rollouts: many sampled completions of many prompts at once, for analysis and for data.

    rollouts(model, prompts, copies=64, max_new_tokens=32, ends=[tokenizer.eos_token_id])

gives 64 completions (lists of ids, the end included) of each prompt. Prompts of any lengths are
read together; a row leaves the batch when it ends.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch

from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError
from tokenry.model.decoding import DecodingState


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

    ends: ids that end a completion (they are kept as its last token). banned: for each prompt an id
    that its completions must not begin with, or None; the remaining distribution is renormalised.
    rows_per_batch: completions that grow together.
    """
    if temperature <= 0:
        raise InputError(f"temperature must be positive, got {temperature}")
    if banned is not None and len(banned) != len(prompts):
        raise InputError(f"{len(banned)} banned tokens for {len(prompts)} prompts: give one each")
    if any(not len(prompt) for prompt in prompts):
        raise InputError("a prompt is empty: give at least one token to continue")
    generator = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed
    forbidden = [-1 if token is None else token for token in banned or [None] * len(prompts)]
    device = next(model.parameters()).device
    found: list[list[list[int]]] = []
    at_once = max(1, rows_per_batch // max(copies, 1))
    for start in range(0, len(prompts), at_once):
        part = slice(start, start + at_once)
        batch = TokenBatch.from_ids(prompts[part], padding_side="left").to(device)
        state = DecodingState.start(model, batch.ids, batch.attention)
        state.fork(copies)
        first = torch.tensor(forbidden[part]).repeat_interleave(copies)
        flat = _grow(state, first, max_new_tokens, set(ends), temperature, generator)
        found += [flat[i : i + copies] for i in range(0, len(flat), copies)]
    return found


def _grow(
    state: DecodingState,
    banned: torch.Tensor,
    max_new_tokens: int,
    ends: set[int],
    temperature: float,
    generator: torch.Generator,
) -> list[list[int]]:
    texts: list[list[int]] = [[] for _ in range(state.rows)]
    alive = list(range(state.rows))
    for step in range(max_new_tokens):
        probabilities = (state.logits / temperature).softmax(-1).cpu()
        if step == 0:
            rows = (banned >= 0).nonzero()[:, 0]
            probabilities[rows, banned[rows]] = 0.0
            if (probabilities.sum(-1) <= 0).any():
                raise InputError("the banned token is the only one that the model would write")
        tokens = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
        for row, token in zip(alive, tokens.tolist(), strict=True):
            texts[row].append(token)
        going = [place for place, row in enumerate(alive) if texts[row][-1] not in ends]
        if not going or step + 1 == max_new_tokens:
            break
        if len(going) < len(alive):
            state.select(torch.tensor(going))
            alive = [alive[place] for place in going]
        state.append(tokens[going].to(state.attention.device))
    return texts
