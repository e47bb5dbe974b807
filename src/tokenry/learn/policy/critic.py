"""Critic: a linear head on the policy's last hidden state that learns what to expect.

    V_t = w . h_t + b,      loss = weight mean_t clipped_value_loss(V_t, V_old_t, A_t + V_old_t)

Its gradient also reaches the hidden states, that is the policy. The head begins at 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from tokenry.core.aggregate import aggregate
from tokenry.core.checks import within
from tokenry.core.errors import ShapeError
from tokenry.learn.policy.rollout_batch import RolloutBatch
from tokenry.learn.policy.surrogate import clipped_value_loss


@dataclass(frozen=True)
class Critic:
    """Values of states, for `GAE`, and their loss, which is added to the policy gradient's.

    Args:
        heads: values of a state, one per reward, >= 1.
        weight: of the loss, in [0, inf).
        clip: how far a value may move from its old one in it, in (0, inf); None: any distance.
    """

    heads: int = 1
    weight: float = 0.1
    clip: float | None = 0.2

    module_name: ClassVar[str] = "critic"
    rollout_needs: ClassVar[tuple[str, ...]] = ("policy.hidden",)
    needs: ClassVar[tuple[str, ...]] = ("policy.hidden", "token.value", "token.return")

    def __post_init__(self) -> None:
        within(self, "[1, inf)", "heads", integer=True)
        within(self, "[0, inf)", "weight")
        within(self, "(0, inf)", "clip", optional=True)

    def module(self, model: Any) -> nn.Linear:
        head = nn.Linear(model.config.hidden_size, self.heads)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        return head

    def values(self, rollouts: RolloutBatch) -> Tensor:
        """Values of every state, [B, T, heads], float32."""
        return rollouts.module(self)(rollouts.scores().need("hidden").float())

    def of_rewards(self, rollouts: RolloutBatch, rewards: int) -> Sequence[Tensor]:
        """Each reward's values, [B, T]; ShapeError when there are more or fewer heads."""
        if rewards != self.heads:
            raise ShapeError(
                f"{rewards} rewards but {self.heads} value heads: set objectives={rewards}"
            )
        return self.values(rollouts).unbind(-1)

    def term(self, rollouts: RolloutBatch) -> Tensor:
        """The weighted loss of the values, a scalar."""
        values = self.values(rollouts)
        old, returns = (
            rollouts.batch.column(name).reshape(values.shape) for name in ("value", "return")
        )
        errors = clipped_value_loss(values, old, returns, self.clip).mean(-1)
        loss = aggregate(errors, rollouts.mask, "token-mean")
        rollouts.report("value/loss", loss)
        return self.weight * loss
