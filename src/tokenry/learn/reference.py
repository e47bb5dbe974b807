"""References: where the frozen scores that a policy is held to come from.

FrozenModel       another model, or a copy of the policy before training
WithoutAdapter    the policy itself with its PEFT adapter switched off: no second set of weights
BeforeTraining    the policy itself with the adapter that it began with: a second set of that alone
Precomputed       log-probabilities computed once and stored as dataset columns
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from torch import Tensor

from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError, VocabularyError
from tokenry.core.scores import Scores
from tokenry.learn.data import batch_of
from tokenry.learn.objective import NAMED_DIVERGENCE, view_and_need
from tokenry.model.hub import load
from tokenry.model.modes import evaluating
from tokenry.model.score import score, unwrap

ReferenceKind = Literal["auto", "copy", "adapter", "precomputed", "none"]


class Reference(Protocol):
    """Scores a batch without gradient; needs and options are those of `model.score`: top_k where
    likeliest tokens are wanted, temperature where texts were sampled at another one than 1."""

    def __call__(self, batch: TokenBatch, needs: tuple[str, ...], **options: Any) -> Scores: ...


@dataclass(frozen=True)
class FrozenModel:
    """A model that stays as it is; it is scored in evaluation mode (no dropout)."""

    model: Any

    @classmethod
    def copy_of(cls, model: Any) -> FrozenModel:
        """A copy of the model as it is now, without gradients."""
        return cls(copy.deepcopy(model).requires_grad_(False).eval())

    def __call__(self, batch: TokenBatch, needs: tuple[str, ...], **options: Any) -> Scores:
        with evaluating(self.model):
            return score(self.model, batch, needs=needs, grad=False, **options)


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

    def __call__(self, batch: TokenBatch, needs: tuple[str, ...], **options: Any) -> Scores:
        with evaluating(self.model), self.model.disable_adapter():
            return score(self.model, batch, needs=needs, grad=False, **options)


@dataclass(frozen=True)
class BeforeTraining:
    """The policy with its trained weights as they were before training: its adapter's, usually.

    The copies (those weights alone, on the policy's device) take their places while it is scored.
    """

    model: Any
    weights: dict[str, Tensor]

    @classmethod
    def of(cls, model: Any) -> BeforeTraining:
        """The model as it is now."""
        trained = {n: w for n, w in model.named_parameters() if w.requires_grad}
        return cls(model, {name: weight.detach().clone() for name, weight in trained.items()})

    def __call__(self, batch: TokenBatch, needs: tuple[str, ...], **options: Any) -> Scores:
        with evaluating(self.model), self._in_place():
            return score(self.model, batch, needs=needs, grad=False, **options)

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        parameters = dict(self.model.named_parameters())
        trained = {name: parameters[name].data for name in self.weights}
        for name, weight in self.weights.items():
            if weight.shape != trained[name].shape:
                raise InputError(
                    f"the weight {name} is sharded over processes: an adapter cannot be its own "
                    'reference there; use reference="precomputed" or a frozen model'
                )
            weight.data = weight.data.to(trained[name].device)
            parameters[name].data = weight.data
        try:
            yield
        finally:
            for name, weight in trained.items():
                parameters[name].data = weight


@dataclass(frozen=True)
class Precomputed:
    """Log-probabilities that came with the batch, [B, T]. They hold nothing else."""

    logprob: Tensor

    def __call__(
        self, batch: TokenBatch, needs: tuple[str, ...], temperature: float = 1.0, **options: Any
    ) -> Scores:
        if temperature != 1.0:
            raise InputError(
                f"these texts were sampled at temperature {temperature}, and precomputed "
                'log-probabilities are those of temperature 1; use reference="copy" or "adapter"'
            )
        if set(needs) - {"logprob"}:
            raise InputError(
                "this objective needs the reference's whole distributions, and precomputed "
                'references keep log-probabilities only; use reference="copy" or "adapter"'
            )
        return Scores(batch.ids, batch.target, logprob=self.logprob)


def choose_reference(
    kind: str, model: Any, needs: tuple[str, ...], *, new_adapter: bool = False
) -> Any:
    """The reference for a policy that is about to be trained, or None.

    "auto" is the policy as it begins, and nothing when the objective asks for nothing about the
    reference: with the adapter off when that is new (it changes nothing yet), with a copy of the
    adapter that a PEFT model brings, else a frozen copy. "adapter" is the base without an adapter.
    """
    plain = {view_and_need(need)[1] for need in needs}
    compared = {match[1] for need in plain if (match := NAMED_DIVERGENCE.fullmatch(need))}
    distributions = sorted(
        need
        for need in plain
        if need == "policy.divergence"
        or (need.startswith("reference.") and need != "reference.logprob")
    ) + [name for name in compared if name.partition("@")[0] == "reference"]
    wanted = bool(distributions) or "reference.logprob" in plain
    if kind == "none" or (kind == "auto" and not wanted):
        if wanted:
            raise InputError(f"this objective needs a reference ({', '.join(needs)})")
        return None
    if kind == "precomputed":
        if distributions:
            raise InputError(
                f'this objective needs "{distributions[0]}", the reference\'s whole distributions, '
                'which precomputed log-probabilities lack; use reference="copy" or "adapter"'
            )
        return None
    if kind == "adapter" or (kind == "auto" and new_adapter):
        return WithoutAdapter(model)
    if kind == "auto" and hasattr(model, "disable_adapter"):
        return BeforeTraining.of(model)
    if kind in ("auto", "copy"):
        return FrozenModel.copy_of(model)
    raise InputError(f'reference must be "auto", "copy", "adapter" or "precomputed", got {kind!r}')


def load_reference(given: Any) -> Any:
    """A kind or a value as it is; a folder, or the average of several, as a frozen model."""
    if isinstance(given, str) and given in get_args(ReferenceKind):
        return given
    folders = [given] if isinstance(given, str | Path) else given
    if not isinstance(folders, list | tuple):
        return given
    from tokenry.model.averaging import soup_models

    models = [load(folder).model for folder in folders]
    model = models[0] if len(models) == 1 else soup_models(models)
    return FrozenModel(model.requires_grad_(False).eval())


def check_vocabulary(name: str, reference: Any, model: Any) -> None:
    """Raise VocabularyError unless a frozen model predicts the same tokens as the policy."""
    frozen = getattr(reference, "model", None)
    if frozen is None:
        return
    ours, theirs = (unwrap(m).get_output_embeddings() for m in (model, frozen))
    sizes = [None if layer is None else len(layer.weight) for layer in (ours, theirs)]
    if None not in sizes and sizes[0] != sizes[1]:
        raise VocabularyError(
            f"the {name} predicts {sizes[1]} tokens and the policy {sizes[0]}: they have other "
            "tokenizers; choose a model of the same family"
        )


def reference_columns(collate: Any) -> list[str]:
    """Where a dataset keeps the reference's log-probabilities, one column for each side."""
    return [f"reference_{side}_logprob" for side in collate.completions]


def precompute_reference(
    dataset: Any,
    collate: Any,
    reference: Reference,
    *,
    batch_size: int = 8,
) -> Any:
    """The dataset with more columns: the reference's logprob of every completion token, 0 where one
    does not count.

    collate: the `PreferenceCollator` of the training run, whose completions get the column.
    """
    device = next(iter(getattr(reference, "model").parameters())).device  # noqa: B009
    names = reference_columns(collate)
    columns: dict[str, list[list[float]]] = {name: [] for name in names}
    for start in range(0, len(dataset), batch_size):
        rows = [dataset[i] for i in range(start, min(start + batch_size, len(dataset)))]
        batch = batch_of(collate(rows))
        scores = reference(batch.to(device), ("logprob",))
        real = zip(scores.need("logprob").cpu(), batch.attention, strict=True)
        for number, (logprob, attention) in enumerate(real):
            side, row = names[number // len(rows)], rows[number % len(rows)]
            columns[side].append(logprob[attention][len(row["prompt_ids"]) :].tolist())
    for name, values in columns.items():
        dataset = dataset.add_column(name, values)
    return dataset
