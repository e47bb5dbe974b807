"""Reduction to the tokens that count most: the rest is dropped, or joins the one it resembles.

    top      keep the M tokens of the largest s
    absorb   keep them, and put every other token i to the kept one j of the largest cos(x_i, x_j);
             a kept token becomes the mean of its group

The two baselines of token reduction: what dropping costs, and what of it merging gives back.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tokenry.core.errors import ShapeError
from tokenry.core.reduction import Merging, Selection, merging_into, select_top
from tokenry.model.reduction.base import reducer


@reducer("top")
@dataclass(frozen=True)
class Top:
    """Keeps the tokens of the largest scores, of equal ones the earlier.

    Args:
        protect: places that are kept whatever their score; they count towards the budget.
    """

    protect: tuple[int, ...] = ()

    def __call__(self, tokens: Tensor, scores: Tensor, budget: int) -> Selection:
        _check(tokens, scores)
        return select_top(scores, budget, self.protect)


@reducer("absorb")
@dataclass(frozen=True)
class Absorb:
    """Keeps the tokens of the largest scores, each with the others that resemble it most.

    Args:
        protect: places that are kept whatever their score; they count towards the budget.
    """

    protect: tuple[int, ...] = ()

    def __call__(self, tokens: Tensor, scores: Tensor, budget: int) -> Merging:
        _check(tokens, scores)
        kept = select_top(scores, budget, self.protect)
        unit = normalize(tokens.float(), dim=-1)
        similarity = unit @ kept.apply(unit).transpose(-1, -2)  # [..., N, M]
        nearest = kept.index.gather(-1, similarity.argmax(-1))
        # a kept token stays with itself, even if it equals another one
        places = torch.arange(scores.shape[-1], device=scores.device).expand_as(nearest)
        target = nearest.scatter(-1, kept.index, places.gather(-1, kept.index))
        return merging_into(target)


def _check(tokens: Tensor, scores: Tensor) -> None:
    if tokens.shape[:-1] != scores.shape:
        raise ShapeError(
            f"scores {list(scores.shape)} are not one for each of {list(tokens.shape)}"
        )
