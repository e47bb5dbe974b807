"""Preference batches: 2B rows, first the chosen, then the rejected; `group` = pair."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenry.core.batch import TokenBatch
from tokenry.core.errors import ShapeError


def sequence_sum(values: Tensor, batch: TokenBatch) -> Tensor:
    """Sum of per-token values over each row's target tokens, [2B, T] -> [2B], float32 or float64.

    What stands outside the target does not matter, even when it is NaN or infinite.
    """
    return torch.where(batch.target, full_precision(values), 0.0).sum(-1)


def full_precision(values: Tensor) -> Tensor:
    """At least float32: half-precision sums over a long completion lose whole tokens."""
    return values if values.dtype == torch.float64 else values.float()


def halves(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The chosen rows and the rejected rows."""
    if len(rows) % 2:
        raise ShapeError(
            f"a preference batch has an even number of rows, chosen first, then rejected; "
            f"got {len(rows)}"
        )
    return rows[: len(rows) // 2], rows[len(rows) // 2 :]


def check_pairs(batch: TokenBatch) -> None:
    """Raise ShapeError unless row i and row i + B belong to the same pair."""
    if batch.group is None:
        raise ShapeError("a preference batch needs `group`, the number of each row's pair")
    chosen, rejected = halves(batch.group)
    if not torch.equal(chosen, rejected):
        wrong = int((chosen != rejected).nonzero()[0])
        raise ShapeError(
            f"chosen row {wrong} is of pair {int(chosen[wrong])} but the rejected row beside it is "
            f"of pair {int(rejected[wrong])}: order both halves alike"
        )


def pair_metrics(
    batch: TokenBatch, losses: Tensor, chosen_reward: Tensor, rejected_reward: Tensor
) -> dict[str, Tensor]:
    """The metrics that every preference objective logs, one value per pair: [B] each."""
    lengths = halves(batch.target.sum(-1).float())
    return {
        "loss": losses.detach(),
        "rewards/chosen": chosen_reward.detach(),
        "rewards/rejected": rejected_reward.detach(),
        "rewards/margin": (chosen_reward - rejected_reward).detach(),
        "rewards/accuracy": (chosen_reward > rejected_reward).float(),
        "length/chosen": lengths[0],
        "length/rejected": lengths[1],
    }
