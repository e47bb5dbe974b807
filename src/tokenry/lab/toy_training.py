"""Training small transformers on batches made by a function: the toy loop of off-policy papers.

    fit_toy: a tiny model fitted to a task, once  ->  train_copy: copies of it trained by objectives

each measured on the way; and fast seeded sampling.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from tokenry.core.aggregate import masked_mean
from tokenry.core.batch import TokenBatch
from tokenry.core.checks import within
from tokenry.core.scores import Scores
from tokenry.decode.controls import controlled_state
from tokenry.decode.sample import sample
from tokenry.lab.toy_model import toy_model
from tokenry.lab.toys import trained
from tokenry.learn.compute import compute_loss
from tokenry.learn.data.collator import PreferenceCollator, batch_of
from tokenry.learn.fit import fit, linear
from tokenry.learn.objective import Loss, Objective, Unit, data_columns
from tokenry.learn.reference import FrozenModel

T = TypeVar("T")

Batches = Callable[[torch.Generator], TokenBatch]


@dataclass(frozen=True)
class NegativeLogLikelihood(Objective):
    """Mean negative log-likelihood of the target tokens.

    direction: factor of the loss, in (-inf, inf); -1 is gradient ascent.
    """

    direction: float = 1.0

    needs: ClassVar[tuple[str, ...]] = ("policy.logprob",)
    unit: ClassVar[Unit] = "token"

    def __post_init__(self) -> None:
        within(self, "(-inf, inf)", "direction")

    def __call__(
        self, batch: TokenBatch, policy: Scores, reference: Scores | None = None, **_: object
    ) -> Loss:
        return Loss(-self.direction * masked_mean(policy.need("logprob"), batch.target))


def fit_toy(
    batches: Batches,
    vocabulary: int,
    length: int,
    seed: int,
    *,
    data: Any,
    steps: int,
    learning_rate: float = 3e-3,
    decay: float = 0.5,
    clip: float | None = None,
    good: Callable[[Any], bool] | None = None,
    every: int = 10,
    **shape: Any,
) -> Any:
    """A toy model fitted to batches by maximum likelihood, frozen; trained once and kept.

    Args:
        batches: makes one from a generator.
        vocabulary: of `toy_model`; the seed is also that of the training.
        length: of `toy_model`; the seed is also that of the training.
        seed: of `toy_model`; the seed is also that of the training.
        shape: of `toy_model`; the seed is also that of the training.
        data: what decides the batches beside the code of the function: a world, sizes. A value
            whose repr says all about it.
        steps: of `train_on`.
        learning_rate: of `train_on`.
        decay: of `train_on`.
        clip: of `train_on`.
        good: ends the training when it says so of the model, asked after each `every` steps.

    Returns:
        The model in evaluation mode.
    """

    def train(model: Any) -> None:
        def observe(step: int) -> bool:
            return good is not None and step > 0 and good(model)

        options = {"steps": steps, "learning_rate": learning_rate, "decay": decay, "clip": clip}
        options |= {"observe": observe, "every": every, "seed": seed}
        train_on(batches, NegativeLogLikelihood(), model, **options)

    return trained(
        lambda: toy_model(vocabulary, length, seed, **shape),
        train,
        batches,
        (vocabulary, length, seed, sorted(shape.items())),
        (data, steps, learning_rate, decay, clip, every),
    )


def train_copy(
    batches: Batches,
    objective: Objective,
    model: Any,
    *,
    measure: Callable[[int, Any], T] | None = None,
    every: int = 50,
    seed: int = 0,
    modules: nn.Module | None = None,
    **options: Any,
) -> tuple[Any, list[T]]:
    """A copy of the model trained on batches, and its measurements on the way.

    Args:
        batches: of `train_on`; the reference is the model itself by default.
        objective: of `train_on`; the reference is the model itself by default.
        options: of `train_on`; the reference is the model itself by default.
        model: stays as it is.
        measure: (steps done, policy) -> anything; see `observe` there for when.
        seed: of the batches, and of dropout.
        modules: the objective's own weights; None: `seeded_modules`.

    Returns:
        The trained copy in evaluation mode, and what `measure` gave.
    """
    policy, points = copy.deepcopy(model), []
    modules = modules or seeded_modules(objective, policy, seed)
    observe = None if measure is None else lambda step: points.append(measure(step, policy))
    options = {"reference": model, **options, "observe": observe, "every": every}
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # dropout draws from the global generator
        train_on(batches, objective, policy, modules=modules, seed=seed, **options)
    return policy, points


def seeded_modules(objective: Objective, model: Any, seed: int = 0) -> Any:
    """The objective's own weights, drawn from a seed; None for one that has none."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # torch initialises layers from the global generator
        return objective.modules(model)


def train_on(
    batches: Batches,
    objective: Objective,
    model: Any,
    *,
    steps: int,
    learning_rate: float,
    seed: int | torch.Generator = 0,
    reference: Any = None,
    frozen: Mapping[str, Any] | None = None,
    modules: nn.Module | None = None,
    modules_rate: float | None = None,
    decay: float = 0.0,
    clip: float | None = 1.0,
    observe: Callable[[int], Any] | None = None,
    every: int = 50,
) -> Any:
    """Train `model` in place on `steps` batches; the model, in evaluation mode.

    batches: makes one from a generator seeded with `seed`, or from that generator. reference: the
    frozen model that is needed, if one is. modules_rate: learning rate of `modules`, if another
    (an objective may say its own). decay: over this share of the steps, the last ones, learning
    rates fall to 0. clip: largest norm of a gradient. observe: called with the number of steps
    done, before the first, after each `every` and after the last; the run ends when it says True.
    """
    model.train().requires_grad_(objective.trains_policy)
    groups = [{"params": [w for w in model.parameters() if w.requires_grad], "lr": learning_rate}]
    if modules is not None:
        rate = modules_rate or objective.modules_learning_rate or learning_rate
        shrink = objective.modules_weight_decay or 0.0
        groups.append({"params": [*modules.parameters()], "lr": rate, "weight_decay": shrink})
    held = None if reference is None else FrozenModel(reference)
    others = {name: FrozenModel(other) for name, other in (frozen or {}).items()}
    if observe:
        observe(0)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        batch = batches(generator)
        return compute_loss(objective, batch, model, held, frozen=others, modules=modules).loss

    fit(
        loss,
        groups,
        steps=steps,
        learning_rate=learning_rate,
        schedule=linear(decay=decay) if decay else None,
        clip=clip,
        seed=seed,
        observe=None if observe is None else lambda done, _: observe(done),
        every=every,
    )
    return model.eval()


def from_rows(objective: Objective, rows: Sequence[dict[str, Any]], batch_size: int) -> Batches:
    """Batches of dataset rows with ids, as the trainer makes them: the completions and the columns
    that the objective needs."""
    blocks, columns = objective.completions, data_columns(objective)
    whole = batch_of(PreferenceCollator(0, completions=blocks, columns=columns)(rows))

    def batches(generator: torch.Generator) -> TokenBatch:
        index = torch.randint(len(rows), (batch_size,), generator=generator)
        drawn = whole.select(torch.cat([index + len(rows) * n for n in range(len(blocks))]))
        return replace(drawn, group=torch.arange(batch_size).repeat(len(blocks)))

    return batches


def completed(prompts: Tensor, completions: Tensor) -> TokenBatch:
    """Rows of prompts [B, T] and completions [B, L]; the completions count."""
    ids = torch.cat([prompts, completions], 1)
    target = (torch.arange(ids.shape[1]) >= prompts.shape[1]).expand(len(ids), -1)
    return TokenBatch(ids, torch.ones_like(target), target)


@torch.no_grad()
def sample_on(
    model: Any,
    prompts: Tensor,
    length: int,
    generator: torch.Generator,
    *,
    end: int | None = None,
    control: Tensor | None = None,
    greedy: bool = False,
) -> Tensor:
    """[B, length] tokens behind prompts [B, T] of one length; after `end` only `end` follows.

    control: [n, D] embeddings before every prompt.
    """
    state = None if control is None else controlled_state(model, prompts, control)
    drawn = sample(
        model,
        prompts,
        max_new_tokens=length,
        ends=[] if end is None else [end],
        temperature=0.0 if greedy else 1.0,
        leave=False,
        state=state,
        generator=generator,
    )
    return torch.tensor([[*row, *[end or 0] * (length - len(row))] for row in drawn])
