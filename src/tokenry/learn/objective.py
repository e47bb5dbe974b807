"""Objective: what every training objective is, and what it gives back.

An objective is a value (usually a frozen dataclass of hyper-parameters) that names what it needs
and turns scores into a loss. `learn.compute` computes just those needs; the objective never sees a
model, so it runs unchanged on toy tables, tiny models and real ones.

    needs                  meaning, all aligned [B, T] like `batch.ids`
    "policy.logprob"       log pi(y_t | s_t), with gradient
    "policy.entropy"       entropy of pi(. | s_t), with gradient
    "policy.divergence"    D(reference || policy) at s_t over the whole vocabulary, gradient to the
                           policy only; D is the objective's attribute `divergence`, by default
                           the forward KL
    "reference.logprob"    log pi_ref(y_t | s_t), no gradient
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from torch import Tensor

from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError
from tokenry.core.scores import Scores

NEEDS = ("policy.logprob", "policy.entropy", "policy.divergence", "reference.logprob")

Unit = Literal["pair", "row", "token"]


@dataclass(frozen=True)
class Loss:
    """A scalar to minimise and what to log about it.

    loss: scalar, the mean over the batch's units (see `Objective.unit`).
    metrics: detached float tensors, scalars or one value per unit. One value per unit is better:
        evaluation then averages exactly, whatever the batches. A metric named "loss" holds each
        unit's own loss.
    """

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


@runtime_checkable
class Objective(Protocol):
    """The role. An objective may also carry

    divergence: the `FDivergence` behind "policy.divergence" (default: forward KL);
    at_reference: the value of the loss when policy and reference agree, if it is a constant;
    stopped(batch): need -> mask [B, T] of the entries through which no gradient flows, by design.
        The contract test checks it by finite differences that hold just these entries fixed.
    """

    needs: ClassVar[tuple[str, ...]]
    """What must be in the scores, in the words of the table above."""

    unit: ClassVar[Unit]
    """What the loss is a mean over; gradient accumulation and devices are weighted by it."""

    def __call__(self, batch: TokenBatch, policy: Scores, reference: Scores | None) -> Loss: ...


def count_units(unit: Unit, batch: TokenBatch) -> int:
    """How many units a batch holds: pairs (half its rows), rows, or target tokens."""
    if unit == "pair":
        return len(batch.ids) // 2
    return len(batch.ids) if unit == "row" else int(batch.target.sum())


def check_needs(objective: Any) -> tuple[str, ...]:
    """The objective's needs, or an InputError that names the ones nobody can compute."""
    unknown = sorted(set(objective.needs) - set(NEEDS))
    if unknown:
        raise InputError(
            f"{type(objective).__name__} needs {', '.join(unknown)}, which nothing computes; "
            f"possible needs: {', '.join(NEEDS)}"
        )
    return tuple(objective.needs)
