"""Annotation: symbols to be written up in a fixed scaffold of 12 tokens that holds two labels.

    prompt   a start mark and 8 symbols      answer   s0 s1 s2 s3 LABEL s4 s5 s6 s7 s8 LABEL s9 ...

A rule of its own gives each half's label from the half's most frequent symbol (the smallest one of
equals). The corpus obeys it most of the time only.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import one_hot

SYMBOLS, LABELS, LENGTH = 12, 6, 8  # ids 0-11 symbols, 12-17 labels, 18-29 the scaffold's tokens
FIRST_LABEL, SCAFFOLD = SYMBOLS, SYMBOLS + LABELS
START = SCAFFOLD + 12
VOCABULARY = START + 1
LABEL_PLACES = (4, 10)  # in the answer of 14 tokens


@dataclass(frozen=True)
class Annotation:
    """A seeded rule, and inputs labelled by it."""

    seed: int

    @cached_property
    def rule(self) -> Tensor:
        """The label of each half's most frequent symbol, [2, 12]."""
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randint(LABELS, (2, SYMBOLS), generator=generator)

    def draw(
        self, count: int, generator: torch.Generator, noise: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Prompts [count, 9] and their two labels [count, 2].

        noise: how often a label is any class, in [0, 1].
        """
        symbols = torch.randint(SYMBOLS, (count, LENGTH), generator=generator)
        counts = one_hot(symbols.view(count, 2, LENGTH // 2), SYMBOLS).sum(2)  # [count, 2, 12]
        labels = torch.stack([self.rule[half, counts[:, half].argmax(-1)] for half in (0, 1)], 1)
        wrong = torch.rand(labels.shape, generator=generator) < noise
        other = torch.randint(LABELS, labels.shape, generator=generator)
        start = torch.full((count, 1), START)
        return torch.cat([start, symbols], 1), torch.where(wrong, other, labels)


def answers(labels: Tensor) -> Tensor:
    """The scaffold with two labels [count, 2] in it, [count, 14]."""
    scaffold = torch.arange(SCAFFOLD, START).expand(len(labels), -1)
    first, second = (labels + FIRST_LABEL).split(1, 1)
    return torch.cat([scaffold[:, :4], first, scaffold[:, 4:9], second, scaffold[:, 9:]], 1)
