"""Training the parts of a drafter while the model stays as it is: batches, steps, checkpoints.

What is trained on text only makes drafts; the text that is decoded with them is the model's own. So
the best training text is what the model writes itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from tokenry.core.batch import TokenBatch
from tokenry.core.checks import within
from tokenry.core.errors import InputError, ShapeError
from tokenry.learn.fit import Checkpoint, cosine, fit

Texts = Sequence[Sequence[int]]
Targets = Sequence[Sequence[bool]]


@dataclass(frozen=True)
class Schedule:
    """How drafters' parts are trained.

    Args:
        steps: of AdamW without weight decay, gradients clipped to norm 1; whole, in [0, inf).
        batch_size: texts per step, whole, in [1, inf).
        length: tokens per text, whole, in [2, inf); longer texts are cut into pieces.
        learning_rate: reached after `warm_up` steps, in (0, inf); then falls to a tenth on half a
            cosine.
        warm_up: whole, in [0, inf).
        seed: of batches and noise, whole, in [0, 9e18].
        checkpoint: a file that is written every `save_every` steps, and that training goes on from
            if it exists; the result is then the same as without the interruption.
        save_every: whole, in [1, inf).
        progress: a bar in the terminal.
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


def train_parts(
    parts: nn.Module,
    loss: Callable[[int, torch.Generator], Tensor],
    schedule: Schedule,
    observe: Callable[[int, float], None] | None = None,
) -> None:
    """Minimise loss(step, generator) over the weights of `parts` that require gradients.

    The generator depends on seed and step only.

    Args:
        observe: called with every step and its loss.
    """
    own = {
        "steps": schedule.steps,
        "learning_rate": schedule.learning_rate,
        "schedule": cosine(end=0.1, warmup=schedule.warm_up),
        "observe": None if observe is None else lambda done, value: observe(done - 1, value),
        "progress": schedule.progress,
    }
    if schedule.checkpoint is not None:
        own["checkpoint"] = Checkpoint(schedule.checkpoint, schedule.save_every)
    parts.train()
    fit(lambda step, _: loss(step, _generator(schedule.seed, step)), parts, **own)
    parts.eval()


def _generator(seed: int, step: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


class Pieces:
    """Texts cut into pieces of at most `length` tokens, and random batches of them.

    Args:
        texts: token ids.
        targets: True on the tokens whose prediction counts (what the model wrote, not the prompt);
            None counts all.
        least: shorter pieces are left out.
    """

    def __init__(self, texts: Texts, targets: Targets | None, length: int, least: int):
        if targets is not None and [len(t) for t in targets] != [len(t) for t in texts]:
            raise ShapeError("every text needs one target for each of its tokens")
        self.rows: list[list[int]] = []
        self.targets: list[list[bool]] = []
        for number, text in enumerate(texts):
            counts = [True] * len(text) if targets is None else list(targets[number])
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
