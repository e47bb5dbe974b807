"""The two pools of opinions: what one of the models likes, and what all of them like.

    mixture   p(v) = sum_k w_k p_k(v)                   likely in one is likely
    product   p(v) = prod_k p_k(v)^{w_k} / Z            impossible in one is impossible

The mixture is the distribution of a model drawn at random for this token; the product is the one
with the least sum_k w_k KL(p || p_k).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tokenry.core.errors import InputError
from tokenry.decode.ensembles.base import checked, combiner


@combiner("mixture")
@dataclass(frozen=True)
class Mixture:
    """The mean of the probabilities."""

    def __call__(self, logprobs: Tensor, weights: Tensor | None = None) -> Tensor:
        logprobs, weights = checked(logprobs, weights)
        return (logprobs + weights.log()).logsumexp(0)


@combiner("product")
@dataclass(frozen=True)
class Product:
    """The mean of the logarithms, normalised. InputError where no token is possible in all."""

    def __call__(self, logprobs: Tensor, weights: Tensor | None = None) -> Tensor:
        logprobs, weights = checked(logprobs, weights)
        mean = (logprobs * weights).sum(0)
        if bool(mean.isneginf().all(-1).any()):
            raise InputError("the models have no possible token in common: mix them instead")
        return mean.log_softmax(-1)
