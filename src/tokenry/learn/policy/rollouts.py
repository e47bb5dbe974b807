"""Rollouts: completions that a policy samples itself, as a batch that an objective learns from.

    prompts [B, T] -> n completions of each -> TokenBatch with n B rows, sample after sample,
    `group` = prompt, `row.reward` from the reward functions -> objective.prepare -> columns

A reward function takes (prompt, completion), both texts, and gives a number; several of them give
`row.reward` as [rows, n].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError
from tokenry.model.score import unwrap

RewardFunction = Callable[[str, str], float]


@dataclass(frozen=True)
class RolloutSettings:
    """How completions are sampled.

    samples: completions of each prompt. max_new_tokens: their longest. temperature: of the
    policy's distribution; other than 1 the samples are not from the policy that is trained.
    """

    samples: int = 4
    max_new_tokens: int = 64
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.samples < 1 or self.max_new_tokens < 1 or not self.temperature > 0:
            raise InputError(
                "rollouts need samples >= 1, max_new_tokens >= 1 and temperature > 0, got "
                f"{self.samples}, {self.max_new_tokens}, {self.temperature}"
            )


@torch.no_grad()
def sample_rollouts(
    model: Any,
    prompts: Tensor,
    attention: Tensor,
    settings: RolloutSettings = RolloutSettings(),
    *,
    eos: int | Sequence[int] | None = None,
    pad_id: int = 0,
) -> TokenBatch:
    """Completions of left-padded prompts [B, T] as a batch of samples * B rows.

    A completion ends with the end token, which counts, or at max_new_tokens. eos: the end tokens;
    None: the model's own. Draws from torch's global generator, as `model.generate` does.
    """
    plain = unwrap(model)
    training = plain.training
    model.eval()
    ends = _end_tokens(plain, eos)
    try:
        whole = model.generate(
            input_ids=prompts.repeat(settings.samples, 1),
            attention_mask=attention.long().repeat(settings.samples, 1),
            do_sample=True,
            temperature=settings.temperature,
            top_k=0,
            top_p=1.0,
            max_new_tokens=settings.max_new_tokens,
            pad_token_id=pad_id,
            eos_token_id=ends or None,
        )
    finally:
        model.train(training)
    rows, width = len(whole), prompts.shape[1]
    drawn = whole[:, width:]
    ended = torch.isin(drawn, torch.tensor(ends, device=drawn.device)) if ends else drawn != drawn
    after_end = ended.cumsum(1) - ended.long() > 0  # the first end token itself still counts
    target = torch.cat([attention.new_zeros(rows, width).bool(), ~after_end], 1)
    mask = torch.cat([attention.bool().repeat(settings.samples, 1), ~after_end], 1)
    group = torch.arange(len(prompts), device=prompts.device).repeat(settings.samples)
    return TokenBatch(torch.where(mask, whole, pad_id), mask, target, group)


def reward_rollouts(
    batch: TokenBatch, tokenizer: Any, functions: Sequence[RewardFunction]
) -> TokenBatch:
    """The batch with the column "reward": [rows] of one function, [rows, n] of n, zeros of none.

    Raises InputError naming the function and the text when a reward is not a finite number.
    """
    rewards = []
    prompt_mask = batch.attention & ~batch.target
    for row in range(len(batch.ids)):
        prompt, completion = (
            tokenizer.decode(batch.ids[row][mask[row]].tolist(), skip_special_tokens=True)
            for mask in (prompt_mask, batch.target)
        )
        rewards.append([_checked(function, prompt, completion) for function in functions])
    values = torch.tensor(rewards, device=batch.ids.device).float()
    if not functions:
        values = values.new_zeros(len(batch.ids), 1)
    return batch.with_columns(reward=values[:, 0] if values.shape[1] == 1 else values)


def _checked(function: RewardFunction, prompt: str, completion: str) -> float:
    value = function(prompt, completion)
    if isinstance(value, bool | int | float) and math.isfinite(value):
        return float(value)
    name = getattr(function, "__name__", str(function))
    raise InputError(
        f"the reward function {name} gave {value!r} for the completion {completion[:60]!r}; "
        "it must give a finite number"
    )


def _end_tokens(model: Any, eos: int | Sequence[int] | None) -> list[int]:
    if eos is None:
        eos = getattr(model.generation_config, "eos_token_id", None)
    if eos is None:
        return []
    return [eos] if isinstance(eos, int) else list(eos)
