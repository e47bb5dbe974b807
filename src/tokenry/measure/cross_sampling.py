"""Cross-sampling: one model writes, and another chooses the tokens on which the two disagree.

With P the distribution of the primary model, I that of the other, both behind the text as written
so far, and u_t uniform in [0, 1):

    S_t  = [ JS(P_t, I_t) > threshold ]  while fewer than `budget` tokens of the text were swapped
    y_t  = F^-1(u_t; I_t)  if S_t,  else  F^-1(u_t; P_t)          F the cumulative distribution

A swap is effective if F^-1(u_t; P_t) is another token: the same u_t serves both. With a base as the
primary and a tuned model as the other, few swaps that bring the tuned model's accuracy show that
they suffice; the other way round, few that lose it show that they are needed. `AtRandom` swaps as
many positions without looking, for control.

Source: Sparse but Critical: A Token-Level Analysis of Distributional Shifts in RLVR Fine-Tuning of
LLMs (arXiv 2603.22446). Reconstructed: the coupling by u_t.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenry.core.checks import in_range, within
from tokenry.core.divergence import divergence
from tokenry.core.divergences import JENSEN_SHANNON
from tokenry.decode.branches import Branch, Branches

Swap = Callable[[Tensor, Tensor], Tensor]
"""(JS [B], uniform numbers [B] that nothing else uses) -> which rows swap, [B] bool."""


@dataclass(frozen=True)
class Above:
    """Swap where JS is above a threshold in nats, any number; ln 2 and more never swaps."""

    threshold: float = 0.1

    def __call__(self, shift: Tensor, noise: Tensor) -> Tensor:
        return shift > self.threshold


@dataclass(frozen=True)
class AtRandom:
    """Swap this share of the positions, in [0, 1], wherever they lie."""

    share: float

    def __post_init__(self) -> None:
        within(self, "[0, 1]", "share")

    def __call__(self, shift: Tensor, noise: Tensor) -> Tensor:
        return noise < self.share


@dataclass(frozen=True)
class CrossSampled:
    """ids: new tokens of each text, the end included; of each of them: swapped, effective, JS."""

    ids: list[list[int]]
    swapped: list[list[bool]]
    effective: list[list[bool]]
    shift: list[list[float]]

    @property
    def effective_share(self) -> float:
        """Effective swaps over all tokens."""
        return sum(map(sum, self.effective)) / max(1, sum(map(len, self.effective)))


def cross_sample(
    primary: Branch,
    intervention: Branch,
    swap: Swap = Above(),
    *,
    max_new_tokens: int,
    budget: int | None = None,
    temperature: float = 1.0,
    ends: Collection[int] = (),
    generator: torch.Generator | None = None,
) -> CrossSampled:
    """Continue prompts with the primary model, some tokens by the other.

    Args:
        primary: the model that writes, at the end of B prompts, used up.
        intervention: the other model, of one vocabulary, at the end of the same prompts, used up.
        swap: where the other one chooses; default: where JS is above 0.1 nats.
        max_new_tokens: of each text, in [1, inf).
        budget: swaps of each text, in [0, inf), or None for any number.
        temperature: of both, also in JS, in (0, inf).
        ends: ids that end a text.
        generator: of the draws; how many a row takes depends on nothing but its place.
    """
    in_range("max_new_tokens", max_new_tokens, "[1, inf)", integer=True)
    in_range("budget", budget, "[0, inf)", integer=True, optional=True)
    in_range("temperature", temperature, "(0, inf)")
    models = Branches([primary, intervention])
    rows = models.rows
    result = CrossSampled(*([[] for _ in range(rows)] for _ in range(4)))
    columns: tuple[Any, ...] = (result.ids, result.swapped, result.effective, result.shift)
    alive, spent = torch.ones(rows, dtype=torch.bool), torch.zeros(rows, dtype=torch.long)
    last = torch.tensor(sorted(ends), dtype=torch.long)
    for step in range(max_new_tokens):
        uniform, noise = torch.rand(2, rows, dtype=torch.float64, generator=generator)
        p, q = (branch.logits.cpu() / temperature for branch in models)
        shift = divergence(p, q, JENSEN_SHANNON)
        swapped = swap(shift, noise) & (spent < (max_new_tokens if budget is None else budget))
        own, other = (drawn(logits, uniform) for logits in (p, q))
        tokens = torch.where(swapped, other, own)
        values = (tokens, swapped, swapped & (own != other), shift)
        lists = [value.tolist() for value in values]
        for row in alive.nonzero()[:, 0].tolist():
            for column, value in zip(columns, lists, strict=True):
                column[row].append(value[row])
        spent += swapped
        alive &= ~torch.isin(tokens, last)
        if not bool(alive.any()) or step + 1 == max_new_tokens:
            break
        models.append(tokens)
    return result


def drawn(logits: Tensor, uniform: Tensor) -> Tensor:
    """F^-1(u): the first token whose cumulative probability is above u, [B] from [B, V], [B]."""
    sums = logits.double().softmax(-1).cumsum(-1)
    aimed = (uniform * sums[:, -1])[:, None]
    return torch.searchsorted(sums, aimed, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)
