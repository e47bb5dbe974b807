"""From models to what an objective asked for: each need computed once, nothing else computed."""

from __future__ import annotations

from typing import Any

from tokenry.core.batch import TokenBatch
from tokenry.core.divergence import FORWARD_KL
from tokenry.core.errors import InputError
from tokenry.core.scores import Scores
from tokenry.learn.objective import Loss, Objective, check_needs
from tokenry.learn.reference import Reference
from tokenry.model.score import score


def compute_scores(
    objective: Objective,
    batch: TokenBatch,
    model: Any,
    reference: Reference | None = None,
    *,
    grad: bool = True,
    also: tuple[str, ...] = (),
) -> tuple[Scores, Scores | None]:
    """The policy's and the reference's scores that `objective` (and `also`) need.

    also: further needs, for metrics. Raises InputError for a need that nothing computes, and when
    the reference is needed and missing.
    """
    needs = {*check_needs(objective), *also}
    frozen = None
    if needs & {"reference.logprob", "policy.divergence"}:
        if reference is None:
            raise InputError(
                f"{type(objective).__name__} needs a reference: pass a frozen model, an adapter to "
                "switch off, or precomputed log-probabilities"
            )
        wanted = {"reference.logprob": "logprob", "policy.divergence": "hidden"}
        frozen = reference(batch, tuple(wanted[need] for need in wanted if need in needs))
    policy = score(
        model,
        batch,
        needs=tuple(
            need.removeprefix("policy.") for need in sorted(needs) if need.startswith("policy.")
        ),
        reference=frozen if "policy.divergence" in needs else None,
        divergence=getattr(objective, "divergence", FORWARD_KL),
        grad=grad,
    )
    return policy, frozen


def compute_loss(
    objective: Objective,
    batch: TokenBatch,
    model: Any,
    reference: Reference | None = None,
    *,
    grad: bool = True,
) -> Loss:
    """The objective's loss of a batch under a model."""
    policy, frozen = compute_scores(objective, batch, model, reference, grad=grad)
    return objective(batch, policy, frozen)
