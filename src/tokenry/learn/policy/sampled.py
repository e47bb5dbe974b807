"""Sampled: any objective over given texts, on the policy's own completions.

    loss = objective( completions that a rollout source draws )        nothing else changes

Distillation, say, on the student's own outputs, or on those for a share of the prompts
(`RolloutSettings.share`); `train("sft", ..., share=0.5)` wraps the objective so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError
from tokenry.core.scores import Scores
from tokenry.learn.delegating import Delegating
from tokenry.learn.objective import Objective, data_columns, is_on_policy


@dataclass(frozen=True)
class Sampled(Delegating):
    """Another objective, on sampled completions; in everything else it is that objective.

    Args:
        objective: one of given texts, without columns of the data. InputError for others: a pair's
            completions are told apart by more than the policy knows.
    """

    objective: Objective

    rollout_needs: ClassVar[tuple[str, ...]] = ()
    num_rewards: ClassVar[int] = 0
    at_sampling_temperature: ClassVar[bool] = False

    def __post_init__(self) -> None:
        name = type(self.objective).__name__
        if is_on_policy(self.objective) or not self.objective.supervised:
            raise InputError(f"{name} does not learn from given texts, so none can be sampled")
        if columns := data_columns(self.objective):
            raise InputError(f"{name} needs {', '.join(columns)}, which samples do not have")

    @property
    def delegate(self) -> Objective:
        return self.objective

    def precompute(self, rows: list[dict[str, Any]], context: Any) -> list[dict[str, Any]]:
        """Nothing: what is computed of the data's completions is not of the samples."""
        return rows

    def prepare(self, batch: TokenBatch, policy: Scores, *given: Any, **others: Any) -> TokenBatch:
        """The completions are all that the loss takes from a rollout."""
        return batch
