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
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from tokenry.core.batch import TokenBatch
from tokenry.core.checks import within
from tokenry.core.errors import InputError, TokenryError
from tokenry.decode.sample import sample
from tokenry.model.score import unwrap

RewardFunction = Callable[[str, str], float]


@dataclass(frozen=True)
class RolloutSettings:
    """Where completions come from, and how often they are used.

    samples: completions of each prompt, whole, in [1, inf). max_new_tokens: their longest, whole,
    in [1, inf). temperature: of the policy's distribution, in (0, inf); other than 1 the samples
    are not from the policy that is trained. updates: how often each completion is trained on,
    whole, in [1, inf). minibatches: optimizer steps of an update, whole, in [1, inf), each on an
    equal part of the completions. The trainer takes
    updates * minibatches optimizer steps on the completions of one step's prompts.
    source: a `RolloutSource`, the key of one ("plain", "tree") or "file.py:name".
    share: of the prompts whose completions are the policy's own, in [0, 1]; the others keep the
    data's. None: all of an on-policy objective's, none of one that learns from given texts.
    """

    samples: int = 4
    max_new_tokens: int = 64
    temperature: float = 1.0
    updates: int = 1
    minibatches: int = 1
    source: Any = "plain"
    share: float | None = None

    def __post_init__(self) -> None:
        counts = ("samples", "max_new_tokens", "updates", "minibatches")
        within(self, "[1, inf)", *counts, integer=True)
        within(self, "(0, inf)", "temperature")
        within(self, "[0, 1]", "share", optional=True)

    @property
    def from_data(self) -> bool:
        """Whether some completions are the data's."""
        return self.share is not None and self.share < 1

    @property
    def steps(self) -> int:
        """Optimizer steps on one draw."""
        return self.updates * self.minibatches


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

    They are drawn from the model's own distribution at the settings' temperature, whatever its
    generation settings say. A completion ends with the end token, which counts, or at
    max_new_tokens. eos: the end tokens; None: all that the generation settings name. Draws from
    torch's global generator.
    """
    rows = torch.arange(len(prompts), device=prompts.device).repeat(settings.samples)
    drawn = sample(
        model,
        prompts,
        attention,
        of=rows,
        max_new_tokens=settings.max_new_tokens,
        ends=_end_tokens(unwrap(model), eos),
        temperature=settings.temperature,
        leave=False,
    )
    return rollout_rows(prompts, attention, rows, drawn, pad_id=pad_id)


def rollout_rows(
    prompts: Tensor,
    attention: Tensor,
    of: Sequence[int] | Tensor,
    completions: Sequence[Sequence[int]],
    chosen: Sequence[Sequence[bool]] | None = None,
    *,
    pad_id: int = 0,
    **columns: Tensor,
) -> TokenBatch:
    """Rollouts from their parts: prompts as they are padded, and completions behind them.

    Args:
        prompts: [B, T]. of: [N], the prompt of each completion, its `group`.
        attention: [B, T]. of: [N], the prompt of each completion, its `group`.
        completions: N lists of ids. chosen: which of them the policy chose, the targets; None: all.
        columns: of the completions, [N, ...].
    """
    device = prompts.device
    rows = torch.as_tensor(of, dtype=torch.long, device=device)
    width = max(map(len, completions))

    def padded(lists: Sequence[Sequence[Any]], value: int | bool) -> Tensor:
        return torch.tensor([[*row, *[value] * (width - len(row))] for row in lists], device=device)

    new = padded([[True] * len(row) for row in completions], False)
    old = attention.bool()[rows]
    ids = torch.cat([prompts[rows], padded(completions, pad_id)], 1)
    mask = torch.cat([old, new], 1)
    own = new if chosen is None else padded(chosen, False)
    target = torch.cat([torch.zeros_like(old), own], 1)
    return TokenBatch(torch.where(mask, ids, pad_id), mask, target, rows, columns)


def reward_rollouts(
    batch: TokenBatch, tokenizer: Any, functions: Sequence[RewardFunction]
) -> TokenBatch:
    """The batch with the column "reward": [rows] of one function, [rows, n] of n, zeros of none.

    Raises InputError naming the function and the text when a reward is not a finite number.
    """
    rewards = []
    begun = (
        batch.target.cumsum(-1) > 0
    )  # what others wrote between the policy's turns belongs to it
    for row in range(len(batch.ids)):
        prompt, completion = (
            tokenizer.decode(batch.ids[row][mask[row]].tolist(), skip_special_tokens=True)
            for mask in (batch.attention & ~begun, batch.attention & begun)
        )
        rewards.append([_checked(function, prompt, completion, row) for function in functions])
    values = torch.tensor(rewards, device=batch.ids.device).float()
    if not functions:
        values = values.new_zeros(len(batch.ids), 1)
    return batch.with_columns(reward=values[:, 0] if values.shape[1] == 1 else values)


def _checked(function: RewardFunction, prompt: str, completion: str, row: int) -> float:
    name = getattr(function, "__name__", type(function).__name__)
    where = f"for sample {row}, prompt {prompt[-60:]!r}, completion {completion[:60]!r}"
    try:
        value: Any = function(prompt, completion)
        if not isinstance(value, Real) and hasattr(value, "item"):
            value = value.item()  # of torch or NumPy, if it is one number
    except TokenryError:
        raise
    except Exception as error:
        raise InputError(
            f"the reward function {name} failed {where}: {type(error).__name__}: {error}"
        ) from error
    if isinstance(value, Real) and math.isfinite(value):
        return float(value)
    raise InputError(
        f"the reward function {name} gave {value!r} {where}; it must give a finite number"
    )


def _end_tokens(model: Any, eos: int | Sequence[int] | None) -> list[int]:
    if eos is None:
        eos = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if eos is None:
        return []
    return [eos] if isinstance(eos, int) else list(eos)
