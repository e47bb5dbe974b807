"""RolloutBatch: what the axes of a policy gradient see of the completions that a policy wrote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tokenry.core.aggregate import aggregate, full_precision
from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError
from tokenry.core.scores import Scores


@dataclass(frozen=True)
class RolloutBatch:
    """Completions that the policy wrote, and what is known about them.

    Args:
        batch: B completions, with the columns of their sampling.
        modules: the axes' own modules, by name.
        policy: scores of the sampling policy while the rollouts are prepared, of this update's
            policy (with gradient) in the loss.
        others: what else was scored, by name: frozen models, further conditionings.
        kept: columns that axes leave for the updates (`keep`). measured: metrics (`report`).
    """

    batch: TokenBatch
    modules: nn.ModuleDict | None = None
    policy: Scores | None = None
    others: Mapping[str, Any] = field(default_factory=dict)
    kept: dict[str, Tensor] = field(default_factory=dict)
    measured: dict[str, Tensor] = field(default_factory=dict)

    @property
    def mask(self) -> Tensor:
        """The tokens that the policy wrote, [B, T] bool."""
        return self.batch.target

    @property
    def group(self) -> Tensor:
        """Which prompt each completion answers, [B]; each its own where none were given."""
        if self.batch.group is not None:
            return self.batch.group
        return torch.arange(len(self.batch.ids), device=self.batch.ids.device)

    @property
    def reward(self) -> Tensor:
        """[B], or [B, n] of n reward functions; InputError when one is not finite."""
        return finite_rewards(self.batch.column("reward"))

    @property
    def total_reward(self) -> Tensor:
        """[B], the sum of a completion's rewards, float32 at least."""
        reward = full_precision(self.reward)
        return reward.sum(-1) if reward.ndim == 2 else reward

    @property
    def old_logprob(self) -> Tensor:
        """log pi_old of each token when it was sampled, [B, T]."""
        return self.batch.column("old_logprob")

    @property
    def old_entropy(self) -> Tensor:
        """Entropy of pi_old at each token, nats, [B, T]; for axes that ask for it."""
        return self.batch.column("old_entropy")

    @property
    def progress(self) -> float:
        """How far the training is, in [0, 1]; 0 where nobody says."""
        column = self.batch.columns.get("progress")
        return 0.0 if column is None else float(column.flatten()[0])

    def logprob_of(self, name: str) -> Tensor:
        """log-probabilities of a frozen model, scored when sampling, [B, T]."""
        return self.batch.column(f"{name}_logprob")

    def scores(self, name: str = "policy") -> Any:
        """What was scored under this name; InputError when it was not."""
        scores = self.policy if name == "policy" else self.others.get(name)
        if scores is None:
            raise InputError(f'the scores of "{name}" are missing: pass {name}=, or name a need')
        return scores

    def module(self, axis: Any) -> nn.Module:
        """The axis's own module, in training mode while the training goes on."""
        name = module_name(axis)
        if self.modules is None or name not in self.modules:
            raise InputError(f"{name} needs its module: pass objective.modules(model) as modules=")
        return self.modules[name]

    def keep(self, **columns: Tensor) -> None:
        """Leave columns [B, ...] for the updates on these rollouts."""
        self.kept.update({name: column.detach() for name, column in columns.items()})

    def report(self, name: str, values: Tensor) -> None:
        """A metric: [B, T] gives its mean over target tokens, one value a row or a scalar stays."""
        values = values.detach()
        if values.shape == self.batch.shape:
            values = aggregate(values.float(), self.mask, "token-mean")
        self.measured[name] = values


@dataclass(frozen=True)
class Column:
    """The axis that reads what another one left for the updates (`RolloutBatch.keep`): a weight of
    tokens, a bound.

    Args:
        name: of the column, [B, T] or [B, 1].
    """

    name: str

    @property
    def needs(self) -> tuple[str, ...]:
        return (f"token.{self.name}",)

    def __call__(self, rollouts: RolloutBatch, *given: Tensor) -> Tensor:
        return rollouts.batch.column(self.name)


def finite_rewards(reward: Tensor) -> Tensor:
    """Rewards [B] or [B, n] as they are; InputError naming the first that is no number."""
    if not bool(reward.isfinite().all()):
        row = int((~reward.isfinite()).nonzero()[0, 0])
        wrong = reward[row][~reward[row].isfinite()].flatten()[0]
        raise InputError(
            f"the reward of completion {row} is {float(wrong)}; rewards must be finite: "
            "leave out completions that nothing could judge"
        )
    return reward


def module_name(axis: Any) -> str:
    return getattr(axis, "module_name", type(axis).__name__)
