"""Rollouts: completions that a policy samples itself, as a batch that an objective learns from.

    prompts [B, T] -> n completions of each -> TokenBatch with n B rows, sample after sample,
    `group` = prompt, `row.reward` from the reward functions -> objective.prepare -> columns

A reward function takes (prompt, completion), both texts, and gives a number, or has TRL's signature
f(prompts=..., completions=..., **columns) -> list; several of them give `row.reward` as [rows, n].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from tokenry.core.batch import TokenBatch
from tokenry.core.checks import in_range, one_of, within
from tokenry.core.errors import InputError
from tokenry.decode.sample import sample
from tokenry.learn.policy.token_rewards import last_target
from tokenry.learn.rewards.scoring import OnError, Rewards, Rows
from tokenry.model.score import unwrap

RewardFunction = Callable[..., Any]
"""(prompt, completion) -> number, or TRL's (prompts=, completions=, **columns) -> list."""

Cut = Literal["learn", "leave_out"]
REWARD_GIVEN = "reward_given"
"""The column that says which of several functions had a value for a row, [rows, n] bool; where it
is missing, all had."""


@dataclass(frozen=True)
class RolloutSettings:
    """Where completions come from, and how often they are used.

    samples: completions of each prompt, whole, in [1, inf). max_new_tokens: their longest, whole,
    in [1, inf). temperature: of the distribution that is sampled from, in (0, inf). It is that
    distribution which is trained and compared: policy, old, reference and frozen log-probabilities
    are all taken at this temperature (see `Objective.at_sampling_temperature`). updates: how often
    each completion is trained on, whole, in [1, inf). minibatches: optimizer steps of an update,
    whole, in [1, inf), each on an equal part of the completions. The trainer takes updates *
    minibatches optimizer steps on the completions of one step's prompts.
    source: a `RolloutSource`, the key of one, with arguments where it takes some
    ("tree", "positions(15)"), or "file.py:name"; None: the
    objective's own (`Objective.rollout_source`), which mostly is "plain".
    share: of the prompts whose completions are the policy's own, in [0, 1]; the others keep the
    data's. None: all of an on-policy objective's, none of one that learns from given texts.
    reward_timeout: seconds for one call of a reward function (of one row, or with TRL's signature
    of one batch), which then runs in a process of its own, in (0, inf); None: in this process,
    where nothing ends a hang. on_reward_error: "raise" (a reward that fails stops the training, as
    in TRL) or "skip" (its row is left out of baseline and loss, and counted).
    cut_completions: of completions that max_new_tokens ended, without an end token: "learn" from
    them as from others, or "leave_out": they stay in the baseline of their group and leave the
    loss, numerator and denominator.
    pass_reward: from which reward on a completion is right, for the log alone (`pass@k`, lengths of
    right and wrong ones), in (-inf, inf); None: nothing is said about right and wrong.
    """

    samples: int = 4
    max_new_tokens: int = 64
    temperature: float = 1.0
    updates: int = 1
    minibatches: int = 1
    source: Any = None
    share: float | None = None
    reward_timeout: float | None = 60.0
    on_reward_error: OnError = "raise"
    cut_completions: Cut = "learn"
    pass_reward: float | None = None

    def __post_init__(self) -> None:
        counts = ("samples", "max_new_tokens", "updates", "minibatches")
        within(self, "[1, inf)", *counts, integer=True)
        within(self, "(0, inf)", "temperature")
        within(self, "(0, inf)", "reward_timeout", optional=True)
        one_of("on_reward_error", self.on_reward_error, get_args(OnError))
        within(self, "[0, 1]", "share", optional=True)
        one_of("cut_completions", self.cut_completions, get_args(Cut))
        in_range("pass_reward", self.pass_reward, "(-inf, inf)", optional=True)

    def of(self, objective: Any) -> RolloutSettings:
        """These with the objective's own source, where none is set."""
        own = getattr(objective, "rollout_source", "plain")
        return self if self.source is not None or own == "plain" else replace(self, source=own)

    @property
    def from_data(self) -> bool:
        """Whether some completions are the data's, or the source reads them (`reads_data`)."""
        from tokenry.learn.policy.sources.mixed import source_of  # which needs these settings

        return getattr(source_of(self), "reads_data", False)

    @property
    def steps(self) -> int:
        """Optimizer steps on one draw."""
        return self.updates * self.minibatches

    def rewards(self, functions: Sequence[str | RewardFunction]) -> Rewards:
        """The reward functions, called as these settings say."""
        return Rewards.of(functions, self.reward_timeout, self.on_reward_error)


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
    batch: TokenBatch,
    tokenizer: Any,
    functions: Rewards | Sequence[RewardFunction],
    data: Mapping[str, Sequence[Any]] | None = None,
    *,
    separate: bool = False,
) -> TokenBatch:
    """The rows that have a reward, with the column "reward": [rows] of one function, [rows, n] of
    n, zeros of none.

    A row at which a function failed, or to which none gave a value, is left out (see
    `learn.rewards.scoring`); where none remains, one row without targets stands for them, a loss of
    0. Functions that give a number for each token also leave the column "token_reward", [rows, T],
    which sums up to the reward: of what others wrote between the policy's turns nothing counts, and
    a reward of the whole completion lies on its last target.

    Args:
        batch: completions; `group` says which prompt a row answers.
        functions: called in this process, or as `Rewards` says. data: further columns of the
            prompts, by name, one value a prompt.
        separate: whether the objective looks at each function's rewards apart, which then must all
            be there.

    Raises:
        InputError: naming the function and the text, when a function fails and is not to be left
            out, or has no value where one is needed.
    """
    rewards = functions if isinstance(functions, Rewards) else Rewards.of(functions)
    if not rewards.callers:
        return batch.with_columns(reward=torch.zeros(len(batch.ids), device=batch.ids.device))
    rows, said = _as_rows(batch, tokenizer, data or {})
    scored = rewards(rows)
    kept = scored.kept()
    if separate:
        for name, values in zip(rewards.names, scored.values, strict=True):
            if unscored := [row for row in kept if values[row] is None]:
                raise InputError(
                    f"the reward function {name} has no value for {rows.describe(unscored[0])}, "
                    "and this objective compares each reward apart: give every row one"
                )
    device, none_left = batch.ids.device, not kept
    dense = torch.zeros(len(rewards.callers), *batch.shape, device=device)
    total = torch.zeros(len(batch.ids), len(rewards.callers), device=device)
    per_token = False
    for number, values in enumerate(scored.values):
        for row in kept:
            value = values[row]
            if isinstance(value, list):
                per_token = True
                dense[number, row, said[row]] = torch.tensor(value, device=device).float()
                dense[number, row] *= batch.target[row]
                total[row, number] = dense[number, row].sum()
            elif value is not None:
                total[row, number] = float(value)
                dense[number, row] = float(value) * last_target(batch.target[row])
    batch = batch.with_columns(reward=total[:, 0] if total.shape[1] == 1 else total)
    given = [[value is not None for value in values] for values in scored.values]
    if len(given) > 1 and not all(all(values[row] for row in kept) for values in given):
        batch = batch.with_columns(**{REWARD_GIVEN: torch.tensor(given, device=device).T})
    if per_token:
        batch = batch.with_columns(token_reward=dense.sum(0))
    if none_left:
        batch = replace(batch, target=torch.zeros_like(batch.target)).select([0])
    return batch if len(kept) in (0, len(rows)) else batch.select(kept)


def cut_short(batch: TokenBatch, ends: Sequence[int]) -> Tensor | None:
    """[rows] bool, True where a row's last token is no end token; None when nothing ends a text."""
    if not ends:
        return None
    place = torch.arange(batch.shape[1], device=batch.ids.device)
    last = torch.where(batch.attention, place, 0).amax(-1, keepdim=True)
    return ~torch.isin(batch.ids.gather(1, last)[:, 0], torch.tensor(ends, device=last.device))


def keep_targets(batch: TokenBatch, kept: Tensor) -> TokenBatch:
    """The rows that keep a target, their targets restricted to `kept`, [B, T] bool.

    When nothing is kept, one row without targets stands for it: a loss of 0.
    """
    batch = replace(batch, target=batch.target & kept)
    rows = batch.target.any(-1)
    if not bool(rows.any()):
        rows[0] = True
    return batch.select(rows)


def _as_rows(
    batch: TokenBatch, tokenizer: Any, data: Mapping[str, Sequence[Any]]
) -> tuple[Rows, Tensor]:
    """What reward functions see of the batch, and where its completions stand, [B, T] bool."""
    # what others wrote between the policy's turns belongs to the completion
    said = batch.attention & (batch.target.cumsum(-1) > 0)
    parts = [
        [batch.ids[row][mask[row]].tolist() for row in range(len(batch.ids))]
        for mask in (batch.attention & ~said, said)
    ]
    prompts, completions = (
        [tokenizer.decode(ids, skip_special_tokens=True) for ids in part] for part in parts
    )
    groups = range(len(batch.ids)) if batch.group is None else batch.group.tolist()
    columns = {name: [values[group] for group in groups] for name, values in data.items()}
    return Rows(prompts, completions, parts[1], list(groups), columns), said


def _end_tokens(model: Any, eos: int | Sequence[int] | None) -> list[int]:
    if eos is None:
        eos = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if eos is None:
        return []
    return [eos] if isinstance(eos, int) else list(eos)
