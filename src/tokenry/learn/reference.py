"""References: where the frozen scores that a policy is held to come from.

FrozenModel       another model, or a copy of the policy before training
WithoutAdapter    the policy itself with its PEFT adapter switched off: no second set of weights
Precomputed       log-probabilities computed once and stored as dataset columns
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError
from tokenry.core.scores import Scores
from tokenry.model.score import score

ReferenceKind = Literal["auto", "copy", "adapter", "precomputed", "none"]
COLUMNS = ("reference_chosen_logprob", "reference_rejected_logprob")


class Reference(Protocol):
    """Scores a batch without gradient; needs are those of `model.score`."""

    def __call__(self, batch: TokenBatch, needs: tuple[str, ...]) -> Scores: ...


@dataclass(frozen=True)
class FrozenModel:
    """A model that stays as it is; it is scored in evaluation mode (no dropout)."""

    model: Any

    @classmethod
    def copy_of(cls, model: Any) -> FrozenModel:
        """A copy of the model as it is now, without gradients."""
        return cls(copy.deepcopy(model).requires_grad_(False).eval())

    def __call__(self, batch: TokenBatch, needs: tuple[str, ...]) -> Scores:
        with evaluating(self.model):
            return score(self.model, batch, needs=needs, grad=False)


@dataclass(frozen=True)
class WithoutAdapter:
    """The policy's base model: its PEFT adapter is off while it is scored."""

    model: Any

    def __post_init__(self) -> None:
        if not hasattr(self.model, "disable_adapter"):
            raise InputError(
                f"{type(self.model).__name__} has no adapter to switch off; use a frozen copy "
                'as reference ("copy")'
            )

    def __call__(self, batch: TokenBatch, needs: tuple[str, ...]) -> Scores:
        with evaluating(self.model), self.model.disable_adapter():
            return score(self.model, batch, needs=needs, grad=False)


@dataclass(frozen=True)
class Precomputed:
    """Log-probabilities that came with the batch, [B, T]. They hold nothing else."""

    logprob: Tensor

    def __call__(self, batch: TokenBatch, needs: tuple[str, ...]) -> Scores:
        if set(needs) - {"logprob"}:
            raise InputError(
                "this objective needs the reference's whole distributions, and precomputed "
                'references keep log-probabilities only; use reference="copy" or "adapter"'
            )
        return Scores(batch.ids, batch.target, logprob=self.logprob)


def choose_reference(kind: ReferenceKind, model: Any, needs: tuple[str, ...]) -> Any:
    """The reference for a policy that is about to be trained, or None.

    "auto" takes the adapter's base for a PEFT model, a frozen copy otherwise, and nothing when the
    objective asks for nothing about the reference.
    """
    wanted = any(need in needs for need in ("reference.logprob", "policy.divergence"))
    if kind == "none" or (kind == "auto" and not wanted):
        if wanted:
            raise InputError(f"this objective needs a reference ({', '.join(needs)})")
        return None
    if kind == "precomputed":
        if "policy.divergence" in needs:
            raise InputError(
                'this objective needs "policy.divergence", the reference\'s whole distributions, '
                'which precomputed log-probabilities lack; use reference="copy" or "adapter"'
            )
        return None
    if kind == "adapter" or (kind == "auto" and hasattr(model, "disable_adapter")):
        return WithoutAdapter(model)
    if kind in ("auto", "copy"):
        return FrozenModel.copy_of(model)
    raise InputError(f'reference must be "auto", "copy", "adapter" or "precomputed", got {kind!r}')


def precompute_reference(
    dataset: Any,
    collate: Callable[[list[dict[str, Any]]], dict[str, Tensor]],
    reference: Reference,
    *,
    batch_size: int = 8,
) -> Any:
    """The dataset with two more columns: the reference's logprob of every completion token."""
    device = next(iter(getattr(reference, "model").parameters())).device  # noqa: B009
    columns: dict[str, list[list[float]]] = {name: [] for name in COLUMNS}
    for start in range(0, len(dataset), batch_size):
        rows = [dataset[i] for i in range(start, min(start + batch_size, len(dataset)))]
        inputs = collate(rows)
        batch = TokenBatch(*(inputs[name] for name in ("ids", "attention", "target", "group")))
        scores = reference(batch.to(device), ("logprob",))
        for number, (logprob, target) in enumerate(
            zip(scores.need("logprob").cpu(), batch.target, strict=True)
        ):
            columns[COLUMNS[number >= len(rows)]].append(logprob[target].tolist())
    for name, values in columns.items():
        dataset = dataset.add_column(name, values)
    return dataset


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode inside, the former mode afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
