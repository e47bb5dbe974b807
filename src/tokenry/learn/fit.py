"""fit: the one loop that trains weights on a loss outside of `transformers.Trainer`.

    for step in 0..steps-1:   g = grad loss(step, generator);  clip |g|;  optimizer;  schedule

Recipes that train a part of their own (a drafter's head, a value model, a probe), toy worlds and
reproductions go through it. What it is told decides the result: the same seed, loss and settings
give the same weights, also when the run was interrupted and went on from its checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from tokenry.core.checks import in_range, within
from tokenry.core.errors import InputError, NonFiniteError
from tokenry.core.files import replacing
from tokenry.model.modes import evaluation_mode

Weights = nn.Module | Iterable[Tensor] | Iterable[dict[str, Any]]
HALF = (torch.float16, torch.bfloat16)
LossAt = Callable[[int, torch.Generator], Tensor | Iterable[Tensor] | None]
Schedule = Callable[[torch.optim.Optimizer, int], Any]  # (optimizer, steps) -> an LRScheduler


@dataclass(frozen=True)
class Checkpoint:
    """A file that a run writes every `every` steps and goes on from when it exists."""

    path: str | Path
    every: int = 100

    def __post_init__(self) -> None:
        within(self, "[1, inf)", "every", integer=True)


def fit(
    loss: LossAt,
    weights: Weights,
    *,
    steps: int,
    learning_rate: float = 1e-3,
    schedule: Schedule | None = None,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
    weight_decay: float = 0.0,
    clip: float | None = 1.0,
    seed: int | torch.Generator = 0,
    observe: Callable[[int, float], bool | None] | None = None,
    every: int = 1,
    checkpoint: Checkpoint | None = None,
    progress: bool = False,
) -> list[float]:
    """Minimise a loss over weights.

    Args:
        loss: (step from 0, generator) -> scalar; batches are drawn with the generator. Or scalars
            that add up to it: each is differentiated before the next is asked for, so that one
            graph is alive at a time; where there are none, no step is taken. None says that nothing
            is left to learn, and ends the run.
        weights: a module (those that require gradients), tensors, or torch's parameter groups,
            whose own "lr" and "weight_decay" win. A tensor that occurs twice is trained once.
        steps: optimizer steps, >= 0.
        learning_rate: > 0.
        schedule: (optimizer, steps) -> a scheduler of torch, such as `linear()`; None is constant.
        optimizer: a class of torch.optim.
        clip: largest norm of the gradient of all weights together; None leaves it.
        seed: of the generator, or the generator itself.
        observe: called with the steps done and the last loss, after each `every` steps and after
            the last; the run ends when it returns True.
        checkpoint: see `Checkpoint`. progress: a bar in the terminal.

    Returns:
        The loss of every step of this call, before that step's update.

    Raises:
        InputError: a setting out of range, no weight to train, weights to train in half precision,
            or a checkpoint of something else.
        NonFiniteError: a loss that is not finite; the weights are then those before that step.
    """
    in_range("steps", steps, "[0, inf)", integer=True)
    in_range("every", every, "[1, inf)", integer=True)
    in_range("learning_rate", learning_rate, "(0, inf)")
    in_range("clip", clip, "(0, inf)", optional=True)
    groups = _groups(weights)
    trained = [weight for group in groups for weight in group["params"]]
    check_precision(
        trained, type(weights).__name__ if isinstance(weights, nn.Module) else "the run"
    )
    stepper = optimizer(groups, lr=learning_rate, weight_decay=weight_decay)
    scheduler = schedule(stepper, steps) if schedule else None
    generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
    first = _resume(checkpoint, trained, stepper, scheduler, generator)
    losses: list[float] = []
    with torch.enable_grad(), _bar(progress, steps, first) as advance:
        for step in range(first, steps):
            value = loss(step, generator)
            if value is None:
                break
            stepper.zero_grad()
            number = 0.0
            for summand in [value] if isinstance(value, Tensor) else value:
                number += float(summand.detach())
                if not math.isfinite(number):
                    exists = checkpoint and Path(checkpoint.path).exists()
                    kept = str(checkpoint.path) if checkpoint and exists else None
                    raise NonFiniteError("the loss", number, step + 1, checkpoint=kept)
                summand.backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(trained, clip)
            stepper.step()  # weights without a gradient stay, as all do where nothing was added up
            if scheduler is not None:
                scheduler.step()
            losses.append(number)
            advance(number)
            done = step + 1
            seen = observe is not None and (done % every == 0 or done == steps)
            stop = bool(seen and observe and observe(done, number))
            if checkpoint and (done % checkpoint.every == 0 or done == steps):
                _save(checkpoint, done, trained, stepper, scheduler, generator)
            if stop:
                break
    return losses


def linear(warmup: float = 0.0, decay: float | None = None, end: float = 0.0) -> Schedule:
    """Rising over the share `warmup` of the steps, then falling to the share `end` over the rest.

    Step s of n runs at rate * min(1, (s + 1) / w, end + (1 - end) (n - s) / d) with w = warmup n
    rounded and d = n - w, or decay n: then the rate falls over that share of the steps at the end.
    """
    in_range("end", end, "[0, 1]")
    in_range("warmup", warmup, "[0, 1]")
    in_range("decay", decay, "(0, 1]", optional=True)

    def schedule(optimizer: torch.optim.Optimizer, steps: int) -> LambdaLR:
        rising = max(1, round(warmup * steps)) if warmup else 0
        falling = max(1, steps - rising) if decay is None else decay * steps

        def factor(step: int) -> float:
            up = (step + 1) / rising if rising else 1.0
            return min(1.0, up, end + (1 - end) * (steps - step) / falling)

        return LambdaLR(optimizer, factor)

    return schedule


def cosine(end: float = 0.1, warmup: int = 0) -> Schedule:
    """`warmup` steps up, then half a cosine down to the share `end` of the learning rate."""
    in_range("end", end, "[0, 1]")
    in_range("warmup", warmup, "[0, inf)", integer=True)

    def schedule(optimizer: torch.optim.Optimizer, steps: int) -> LambdaLR:
        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            done = (step - warmup) / max(1, steps - warmup)
            return end + (1 - end) * (1 + math.cos(math.pi * done)) / 2

        return LambdaLR(optimizer, factor)

    return schedule


@contextmanager
def only_trainable(model: nn.Module, weights: Iterable[Tensor] = ()) -> Iterator[None]:
    """Within: of the model's weights only `weights` receive gradients; afterwards as before."""
    chosen = {id(weight) for weight in weights}
    before = [(weight, weight.requires_grad) for weight in model.parameters()]
    try:
        for weight, _ in before:
            weight.requires_grad_(id(weight) in chosen)
        yield
    finally:
        for weight, required in before:
            weight.requires_grad_(required)
            if not required:
                weight.grad = None


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Within: the model in evaluation mode, its weights without gradients; afterwards as before."""
    with evaluation_mode(model), only_trainable(model):
        yield


def check_precision(weights: Iterable[Tensor], what: str) -> None:
    """Raise InputError when weights that are to be trained are in half precision."""
    half = {weight.dtype for weight in weights if weight.requires_grad and weight.dtype in HALF}
    if half:
        kind = ", ".join(str(dtype).removeprefix("torch.") for dtype in half)
        raise InputError(
            f"{what} has {kind} weights to train, which small steps do not move: load it with "
            'dtype="float32"'
        )


def _groups(weights: Weights) -> list[dict[str, Any]]:
    """Parameter groups of the tensors that require gradients, each tensor once."""
    given: list[Any] = list(weights.parameters() if isinstance(weights, nn.Module) else weights)
    groups = given if given and isinstance(given[0], dict) else [{"params": given}]
    seen: set[int] = set()
    kept = []
    for group in groups:
        params = [
            weight
            for weight in group["params"]
            if weight.requires_grad and not (id(weight) in seen or seen.add(id(weight)))
        ]
        if params:
            kept.append({**group, "params": params})
    if not kept:
        raise InputError("no weight is to be trained: none requires a gradient (requires_grad)")
    return kept


def _save(checkpoint: Checkpoint, done: int, *parts: Any) -> None:
    """Write the run's state, whole or not at all."""
    trained, stepper, scheduler, generator = parts
    state = {
        "step": done,
        "weights": [weight.detach() for weight in trained],
        "optimizer": stepper.state_dict(),
        "schedule": None if scheduler is None else scheduler.state_dict(),
        "generator": generator.get_state(),
    }
    with replacing(Path(checkpoint.path)) as temporary:
        torch.save(state, temporary)


def _resume(checkpoint: Checkpoint | None, *parts: Any) -> int:
    """Load the checkpoint, if there is one: the number of steps that it had done."""
    trained, stepper, scheduler, generator = parts
    if checkpoint is None or not Path(checkpoint.path).exists():
        return 0
    try:
        state = torch.load(checkpoint.path, weights_only=True)
        with torch.no_grad():
            for weight, saved in zip(trained, state["weights"], strict=True):
                if weight.shape != saved.shape:
                    raise ValueError(
                        f"a weight has shape {list(saved.shape)} there, not {list(weight.shape)}"
                    )
                weight.copy_(saved)
        stepper.load_state_dict(state["optimizer"])
        if scheduler is not None:
            scheduler.load_state_dict(state["schedule"])
        generator.set_state(state["generator"])
        return int(state["step"])
    except Exception as error:
        raise InputError(
            f"cannot go on from the checkpoint {checkpoint.path}: {error}; remove it to start anew"
        ) from error


@contextmanager
def _bar(shown: bool, steps: int, first: int) -> Iterator[Callable[[float], None]]:
    from rich.progress import Progress

    bar = Progress() if shown else None
    with bar or nullcontext():
        task = bar.add_task("training", total=steps, completed=first) if bar else None

        def advance(value: float) -> None:
            if bar is not None and task is not None:
                bar.update(task, advance=1, description=f"loss {value:.3f}")

        yield advance
