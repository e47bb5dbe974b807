"""Completions sampled from a model, as data: what methods that make their own answers share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError
from tokenry.decode.generate import ends
from tokenry.learn.policy.rollouts import RolloutSettings, sample_rollouts
from tokenry.model.score import unwrap


def sample_completions(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    count: int,
    *,
    max_new_tokens: int = 128,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 32,
) -> list[list[list[int]]]:
    """`count` completions of every prompt, as ids up to and with the end token: the tokenizer's,
    or one that the model's generation settings name. Nothing else of those settings counts.

    prompts: token ids. The same seed gives the same completions; the global generator is left as
    it was. A completion that reaches max_new_tokens has no end token. batch_size: rows at once.
    """
    if model is None:
        raise InputError("sampling completions needs the model before training; none was given")
    device = next(model.parameters()).device
    end = ends(unwrap(model), tokenizer)
    pad = next((x for x in (tokenizer.pad_token_id, *end) if x is not None), 0)
    settings = RolloutSettings(count, max_new_tokens, temperature)
    at_once = max(1, batch_size // count)
    found: list[list[list[int]]] = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # what is sampled is drawn from the global generator
        for start in range(0, len(prompts), at_once):
            rows = prompts[start : start + at_once]
            batch = TokenBatch.from_ids(rows, pad_id=pad, padding_side="left").to(device)
            drawn = sample_rollouts(
                model, batch.ids, batch.attention, settings, eos=end, pad_id=pad
            )
            of_prompt: list[list[list[int]]] = [[] for _ in rows]
            for number in range(len(drawn.ids)):  # sample after sample
                row = drawn.ids[number][drawn.target[number]]
                of_prompt[number % len(rows)].append(row.tolist())
            found += of_prompt
    return found
