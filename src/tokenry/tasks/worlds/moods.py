"""A small language in which two rewards pull apart: cheerful words, and length.

Fifteen words follow each other as a Markov chain; the first four are cheerful, and behind one of
these a text likes to end (0.35, else 0.06). It has at most twelve words, and at least one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenry.core.batch import TokenBatch

CHEERFUL, END, START, LONGEST = 4, 15, 16, 12  # words 0 to 3; ids; words of a text
VOCABULARY = START + 1


@dataclass(frozen=True)
class MoodLanguage:
    """A chain drawn from a seed."""

    seed: int

    @property
    def chain(self) -> Tensor:
        """P(next | previous), [VOCABULARY, START]."""
        generator = torch.Generator().manual_seed(self.seed)
        chain = torch.randn(VOCABULARY, START, generator=generator).softmax(-1)
        chain[:, END] = 0.0
        end = torch.full((VOCABULARY, 1), 0.06)
        end[:CHEERFUL], end[START] = 0.35, 0.0
        chain = chain / chain.sum(-1, keepdim=True) * (1 - end)
        chain[:, END] = end[:, 0]
        return chain

    def texts(self, generator: torch.Generator, count: int = 64) -> TokenBatch:
        """Texts behind the start token, each up to its end."""
        chain = self.chain
        ids = torch.full((count, 1 + LONGEST), START)
        for step in range(LONGEST):
            following = chain[ids[:, step]]
            ids[:, step + 1] = torch.multinomial(following, 1, generator=generator)[:, 0]
        over = (ids == END).cumsum(1) - (ids == END).long() > 0
        target = ~over
        target[:, 0] = False
        return TokenBatch(ids.masked_fill(over, 0), ~over, target)


def rewards(batch: TokenBatch) -> Tensor:
    """Share of cheerful words, and length as a share of the longest, both in [0, 1], [B, 2]."""
    words = batch.target & (batch.ids != END)
    length = words.sum(-1)
    cheerful = ((batch.ids < CHEERFUL) & words).sum(-1)
    return torch.stack([cheerful / length.clamp_min(1), length / LONGEST], -1)
