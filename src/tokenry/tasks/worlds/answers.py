"""Prompts of three kinds, each of which asks for another virtue of the answer, and answers' worth.

A prompt is its kind and three different words. An answer, at most eight tokens with its end, may be
short, may contain the prompt's words, may be polite: three rewards in [0, 1]. Which of them counts
depends on the prompt's kind, u = 0.8 of the kind's own virtue + 0.1 of each other one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenry.core.batch import TokenBatch

KINDS = ("brevity", "coverage", "politeness")  # ids 0 to 2
TRUE_WEIGHTS = 0.1 + 0.7 * torch.eye(3)  # what a prompt of each kind really asks for
WORDS, POLITE, END = range(3, 23), 23, 24
VOCABULARY, ASKED, LONGEST = 25, 3, 8  # ids; words of a prompt; tokens of an answer


def prompts(count: int, generator: torch.Generator) -> Tensor:
    """[count, 4]: a kind, then three different words."""
    kinds = torch.randint(3, (count, 1), generator=generator)
    order = torch.rand(count, len(WORDS), generator=generator).argsort(1)
    return torch.cat([kinds, WORDS.start + order[:, :ASKED]], 1)


def habits(generator: torch.Generator, count: int = 64) -> TokenBatch:
    """Prompts with answers that know the kind a little: some shorter, some closer to the prompt's
    words, some politer."""
    asking = prompts(count, generator)
    brief, close, kind = (asking[:, :1] == number for number in range(3))
    copied = torch.randint(1, 1 + ASKED, (count, LONGEST), generator=generator)
    answers = torch.randint(WORDS.start, WORDS.stop, copied.shape, generator=generator)
    draw = torch.rand(copied.shape, generator=generator)
    answers = torch.where(draw < 0.25 + 0.15 * close, asking.gather(1, copied), answers)
    answers = torch.where((draw - 0.5).abs() < 0.05 + 0.03 * brief, END, answers)
    answers = torch.where(draw > 0.94 - 0.06 * kind, POLITE, answers)
    return answered(asking, answers)


def answered(asking: Tensor, answers: Tensor) -> TokenBatch:
    """Prompts with answers that end at their first END (or at the width)."""
    over = (answers == END).cumsum(1) - (answers == END).long() > 0
    ids = torch.cat([asking, answers.masked_fill(over, 0)], 1)
    target = torch.cat([torch.zeros_like(asking, dtype=torch.bool), ~over], 1)
    attention = torch.cat([torch.ones_like(asking, dtype=torch.bool), ~over], 1)
    return TokenBatch(ids, attention, target)


def rewards(batch: TokenBatch) -> Tensor:
    """Brevity, coverage of the prompt's words, politeness, each in [0, 1], [B, 3]."""
    answers = torch.where(batch.target, batch.ids, -1)[:, 1 + ASKED :]
    length = ((answers >= 0) & (answers != END)).sum(-1)
    covered = (batch.ids[:, 1 : 1 + ASKED, None] == answers[:, None]).any(-1)
    polite = (answers == POLITE).any(-1)
    return torch.stack([1 - length / LONGEST, covered.float().mean(-1), polite.float()], -1)


def utility(batch: TokenBatch) -> Tensor:
    """What each answer is worth under the true weights of its prompt's kind, [B]."""
    return (TRUE_WEIGHTS[batch.ids[:, 0]] * rewards(batch)).sum(-1)
