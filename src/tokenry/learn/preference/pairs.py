"""Preference batches: 2B rows, first the chosen, then the rejected; `group` = pair."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenry.core.aggregate import full_precision
from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError, ShapeError
from tokenry.core.scores import Scores


def sequence_sum(values: Tensor, batch: TokenBatch) -> Tensor:
    """Sum of per-token values over each row's target tokens, [2B, T] -> [2B], float32 or float64.

    What stands outside the target does not matter, even when it is NaN or infinite.
    """
    return torch.where(batch.target, full_precision(values), 0.0).sum(-1)


def token_log_ratios(batch: TokenBatch, policy: Scores, reference: Scores | None) -> Tensor:
    """rho_t = log pi(y_t|s_t) - log pi_ref(y_t|s_t), [rows, T]; 0 outside the target."""
    if reference is None:
        raise InputError("a log-ratio needs the scores of a reference model")
    own, frozen = (full_precision(scores.need("logprob")) for scores in (policy, reference))
    return torch.where(batch.target, own, 0.0) - torch.where(batch.target, frozen, 0.0)


def implicit_token_rewards(
    batch: TokenBatch, policy: Scores, reference: Scores | None, *, beta: float
) -> Tensor:
    """beta rho_t, [rows, T]: the token reward that a policy trained by DPO encodes.

    In the token-level problem it is the optimal advantage, r + V(s_t+1) - V(s_t): the token's
    reward up to potential shaping (arXiv 2404.12358).
    """
    return beta * token_log_ratios(batch, policy, reference)


def blocks(rows: Tensor, count: int) -> Tensor:
    """[count * B, ...] -> [count, B, ...]: one block of rows for each side of the batch."""
    if count < 1 or len(rows) % count:
        raise ShapeError(f"{len(rows)} rows are not {count} blocks of equal size")
    return rows.view(count, -1, *rows.shape[1:])


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


def check_blocks(batch: TokenBatch, count: int) -> None:
    """Raise ShapeError unless the batch is `count` blocks of rows in the same order of prompts."""
    if batch.group is None:
        raise ShapeError("a batch of several sides needs `group`, the number of each row's prompt")
    group = blocks(batch.group, count)
    wrong = (group != group[0]).nonzero()
    if len(wrong):
        side, row = wrong[0].tolist()
        raise ShapeError(
            f"the batch must be {count} blocks of rows, one for each side, all in the same order "
            f"of prompts; row {row} of block {side} is of prompt {int(group[side, row])}, that of "
            f"block 0 of prompt {int(group[0, row])}"
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
