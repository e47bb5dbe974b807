"""Training the parts of a drafter while the model stays as it is: batches, steps, checkpoints.

What is trained on text only makes drafts; the text that is decoded with them is the model's own. So
the best training text is what the model writes itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tokenry.core.batch import TokenBatch
from tokenry.core.checks import within
from tokenry.core.errors import InputError, ShapeError
from tokenry.core.files import replacing
from tokenry.learn.start import check_precision

Texts = Sequence[Sequence[int]]
Targets = Sequence[Sequence[bool]]


@dataclass(frozen=True)
class Schedule:
    """How drafters' parts are trained.

    steps: of AdamW without weight decay, gradients clipped to norm 1; whole, in [0, inf).
    batch_size: texts per step, whole, in [1, inf). length: tokens per text, whole, in [2, inf);
        longer texts are cut into pieces.
    learning_rate: reached after `warm_up` steps, in (0, inf); then falls to a tenth on half a
        cosine. warm_up: whole, in [0, inf).
    seed: of batches and noise, whole, in [0, 9e18].
    checkpoint: a file that is written every `save_every` steps, and that training goes on from if
        it exists; the result is then the same as without the interruption. save_every: whole, in
        [1, inf). progress: a bar in the terminal.
    """

    steps: int = 1000
    batch_size: int = 8
    length: int = 256
    learning_rate: float = 2e-4
    warm_up: int = 50
    seed: int = 0
    checkpoint: str | Path | None = None
    save_every: int = 100
    progress: bool = False

    def __post_init__(self) -> None:
        within(self, "[0, inf)", "steps", "warm_up", integer=True)
        within(self, "[1, inf)", "batch_size", "save_every", integer=True)
        within(self, "[2, inf)", "length", integer=True)
        within(self, "(0, inf)", "learning_rate")
        within(self, "[0, 9e18]", "seed", integer=True)

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        if step < self.warm_up:
            return self.learning_rate * (step + 1) / self.warm_up
        done = (step - self.warm_up) / max(1, self.steps - self.warm_up)
        wave = torch.cos(torch.tensor(done * torch.pi)).item()
        return self.learning_rate * (0.1 + 0.9 * (1 + wave) / 2)


def train_parts(
    parts: nn.Module,
    loss: Callable[[int, torch.Generator], Tensor],
    schedule: Schedule,
    observe: Callable[[int, float], None] | None = None,
) -> None:
    """Minimise loss(step, generator) over the weights of `parts` that require gradients.

    The generator depends on seed and step only. observe: called with every step and its loss.
    """
    weights = [weight for weight in parts.parameters() if weight.requires_grad]
    check_precision(weights, type(parts).__name__)
    optimizer = torch.optim.AdamW(weights, schedule.learning_rate, weight_decay=0.0)
    first = resume(schedule, parts, optimizer)
    parts.train()
    with _bar(schedule, first) as advance:
        for step in range(first, schedule.steps):
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate(step)
            generator = torch.Generator().manual_seed(schedule.seed * 1_000_003 + step)
            value = loss(step, generator)
            optimizer.zero_grad()
            value.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            if observe:
                observe(step, value.item())
            advance(value.item())
            if (step + 1) % schedule.save_every == 0 or step + 1 == schedule.steps:
                save(schedule, step + 1, parts, optimizer)
    parts.eval()


def save(schedule: Schedule, step: int, parts: nn.Module, optimizer: Any) -> None:
    """Write the checkpoint, whole or not at all."""
    if schedule.checkpoint is not None:
        state = {"step": step, "parts": parts.state_dict(), "optimizer": optimizer.state_dict()}
        with replacing(Path(schedule.checkpoint)) as temporary:
            torch.save(state, temporary)


def resume(schedule: Schedule, parts: nn.Module, optimizer: Any) -> int:
    """Steps done according to the checkpoint, which is loaded; 0 without one."""
    if schedule.checkpoint is None or not Path(schedule.checkpoint).exists():
        return 0
    try:
        state = torch.load(schedule.checkpoint, weights_only=True)
        parts.load_state_dict(state["parts"])
        optimizer.load_state_dict(state["optimizer"])
        return int(state["step"])
    except Exception as error:
        raise InputError(
            f"cannot go on from the checkpoint {schedule.checkpoint}: {error}; remove it to start "
            "anew"
        ) from error


class Pieces:
    """Texts cut into pieces of at most `length` tokens, and random batches of them.

    texts: token ids. targets: True on the tokens whose prediction counts (what the model wrote, not
    the prompt); None counts all. least: shorter pieces are left out.
    """

    def __init__(self, texts: Texts, targets: Targets | None, length: int, least: int):
        if targets is not None and [len(t) for t in targets] != [len(t) for t in texts]:
            raise ShapeError("every text needs one target for each of its tokens")
        self.rows: list[list[int]] = []
        self.targets: list[list[bool]] = []
        for place, text in enumerate(texts):
            counts = [True] * len(text) if targets is None else list(targets[place])
            for start in range(0, len(text), length):
                wanted = counts[start : start + length]
                if len(wanted) >= least and any(wanted[1:]):
                    self.rows.append(list(text[start : start + length]))
                    self.targets.append([False, *wanted[1:]])  # nothing predicts the first
        if not self.rows:
            raise InputError(f"no text has {least} tokens, which training needs at least")

    def batch(self, size: int, generator: torch.Generator) -> tuple[list[int], TokenBatch]:
        """`size` different pieces, if there are as many: their numbers, and the batch."""
        chosen = torch.randperm(len(self.rows), generator=generator)[:size].tolist()
        rows, targets = [self.rows[i] for i in chosen], [self.targets[i] for i in chosen]
        return chosen, TokenBatch.from_ids(rows, targets)


@contextmanager
def frozen(model: Any) -> Iterator[None]:
    """The model in evaluation mode, its weights without gradients; as before afterwards."""
    training = model.training
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    model.eval()
    for weight in trainable:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in trainable:
            weight.requires_grad_(True)
        model.train(training)


@contextmanager
def _bar(schedule: Schedule, first: int) -> Iterator[Callable[[float], None]]:
    from rich.progress import Progress

    bar = Progress() if schedule.progress else None
    with bar or nullcontext():
        task = bar.add_task("training", total=schedule.steps, completed=first) if bar else None

        def advance(value: float) -> None:
            if bar is not None and task is not None:
                bar.update(task, advance=1, description=f"loss {value:.3f}")

        yield advance
