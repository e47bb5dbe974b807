"""Training small transformers on batches made by a function: the toy loop of off-policy papers.

For tasks that are not the preference world of `lab.preference_world`: a tiny model, plain
likelihood training of it, any objective on any batches, and fast seeded sampling.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tokenry.core.aggregate import masked_mean
from tokenry.core.batch import TokenBatch
from tokenry.core.checks import within
from tokenry.core.scores import Scores
from tokenry.decode.controls import controlled_state
from tokenry.decode.sample import sample
from tokenry.learn.compute import compute_loss
from tokenry.learn.fit import fit, linear
from tokenry.learn.objective import Loss, Objective, Unit
from tokenry.learn.reference import FrozenModel

Batches = Callable[[torch.Generator], TokenBatch]


@dataclass(frozen=True)
class NegativeLogLikelihood:
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


def train_on(
    batches: Batches,
    objective: Objective,
    model: Any,
    *,
    steps: int,
    learning_rate: float,
    seed: int = 0,
    reference: Any = None,
    frozen: Mapping[str, Any] | None = None,
    modules: nn.Module | None = None,
    modules_rate: float | None = None,
    decay: float = 0.0,
    observe: Callable[[int], None] | None = None,
    every: int = 50,
) -> Any:
    """Train `model` in place on `steps` batches; the model, in evaluation mode.

    batches: makes one from a generator seeded with `seed`. reference: the frozen model that is
    needed, if one is. modules_rate: learning rate of `modules`, if another. decay: over this share
    of the steps, the last ones, learning rates fall to 0. observe: called with the number of steps
    done, before the first, after each `every` and after the last.
    """
    model.train().requires_grad_(getattr(objective, "trains_policy", True))
    groups = [{"params": [w for w in model.parameters() if w.requires_grad], "lr": learning_rate}]
    if modules is not None:
        groups.append({"params": list(modules.parameters()), "lr": modules_rate or learning_rate})
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
        seed=seed,
        observe=None if observe is None else lambda done, _: observe(done),
        every=every,
    )
    return model.eval()


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
