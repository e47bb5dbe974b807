"""Chow's rule for answers: keep the small model's where its confidence is at least a threshold.

    d = [ c(y) < threshold ]      c  quantile   the alpha-quantile of log p(y_t) over the answer
                                     mean       their mean
                                     sum        their sum, log p(y)

A sum punishes long answers and a mean hides one bad token; a low quantile looks at the answer's
weak places and does not depend on its length.

Source: Language Model Cascades: Token-level uncertainty and beyond (arXiv 2404.10136), section 3.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Self, get_args

import torch
from torch import Tensor

from tokenry.core.checks import in_range, one_of, within
from tokenry.core.errors import ShapeError
from tokenry.decode.routing.base import sequence_router

Statistic = Literal["quantile", "mean", "sum"]


@sequence_router("chow", examples=lambda: _examples())
@dataclass(frozen=True)
class ChowRouter:
    """Asks where the small model's confidence in its answer is below a threshold.

    Args:
        statistic: "quantile" (default), "mean" or "sum".
        threshold: nats, in [-inf, 0]; default -1.0. -inf never asks.
        alpha: of the quantile, in [0, 1]; 0 is the least likely token; default 0.2.
    """

    statistic: Statistic = "quantile"
    threshold: float = -1.0
    alpha: float = 0.2

    def __post_init__(self) -> None:
        one_of("ChowRouter.statistic", self.statistic, get_args(Statistic))
        within(self, "[-inf, 0]", "threshold")
        within(self, "[0, 1]", "alpha")

    def confidence(self, logprob: Tensor, mask: Tensor) -> Tensor:
        """c(y), [B] nats; 0 for an empty answer."""
        if logprob.shape != mask.shape or logprob.ndim != 2:
            raise ShapeError(
                f"logprob and mask must be [B, T], got {list(logprob.shape)}, {list(mask.shape)}"
            )
        values = logprob.float().masked_fill(~mask, 0.0)
        count = mask.sum(-1)
        if self.statistic != "quantile":
            total = values.sum(-1)
            return total if self.statistic == "sum" else total / count.clamp_min(1)
        # linear interpolation between the two order statistics around alpha (n - 1)
        ordered = values.masked_fill(~mask, torch.inf).sort(-1).values
        place = self.alpha * (count - 1).clamp_min(0)
        low = ordered.gather(-1, place.floor().long()[:, None])[:, 0]
        high = ordered.gather(-1, place.ceil().long()[:, None])[:, 0]
        between = (place - place.floor()) * (high - low)
        found = low + torch.where(low == high, 0.0, between)  # -inf - -inf is NaN
        return torch.where(count > 0, found, 0.0)

    def of_share(self, confidences: Tensor, share: float) -> Self:
        """The same rule that asks for this share, in [0, 1], of answers so confident [n]."""
        in_range("share", share, "[0, 1]")
        return replace(self, threshold=min(0.0, float(confidences.float().quantile(share))))

    def __call__(self, logprob: Tensor, mask: Tensor) -> Tensor:
        return self.confidence(logprob, mask) < self.threshold


def _examples() -> list[ChowRouter]:
    return [ChowRouter(), ChowRouter("mean"), ChowRouter("sum", -4.0)]
