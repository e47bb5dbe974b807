"""Scored rehearsal: stored answers with what their writer gave each of their tokens.

Source: The Choice of Divergence: A Neglected Key to Mitigating Diversity Collapse in RL with
Verifiable Reward (arXiv 2509.07430), its static buffer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError, ShapeError
from tokenry.learn.policy.rollout_batch import RolloutBatch
from tokenry.learn.policy.terms import Rehearsal
from tokenry.model.score import score


@dataclass(frozen=True)
class RehearsalBuffer(Rehearsal):
    """Right answers of the first policy, with its log-probabilities, `size` at a time.

    Args:
        logprobs: of each row's completion, a number per token, nats; `scored` fills them in.
    """

    logprobs: Sequence[Sequence[float]] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        lengths = [len(completion) for _, completion in self.rows]
        if [len(row) for row in self.logprobs] != lengths:
            raise ShapeError(f"logprobs must be of completions of {lengths} tokens, one by one")
        if not all(math.isfinite(x) and x <= 1e-4 for row in self.logprobs for x in row):
            raise InputError("logprobs of stored answers must be finite and not above 0")

    @classmethod
    @torch.no_grad()
    def scored(cls, rows: Any, model: Any, size: int = 8) -> RehearsalBuffer:
        """The buffer of rows that `model`, the first policy, wrote; scored once, here."""
        batch = TokenBatch.from_ids(
            [[*prompt, *completion] for prompt, completion in rows],
            [[False] * len(prompt) + [True] * len(completion) for prompt, completion in rows],
        )
        logprob = score(model, batch).need("logprob")
        target = batch.target.to(logprob.device)
        logprobs = [own[mask].tolist() for own, mask in zip(logprob, target, strict=True)]
        return cls(rows, size, logprobs)

    def __call__(self, rollouts: RolloutBatch) -> TokenBatch:
        first = int(rollouts.module(self).turn)  # type: ignore[arg-type]
        batch = super().__call__(rollouts)
        chosen = [self.logprobs[(first + n) % len(self.rows)] for n in range(self.size)]
        values = torch.zeros(batch.shape, device=batch.ids.device)
        values[batch.target] = values.new_tensor([x for row in chosen for x in row])
        return batch.with_columns(reference_logprob=values)
