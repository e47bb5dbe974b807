"""What a reducer is: it decides which of many tokens are kept, merged or pooled."""

from typing import Protocol

from torch import Tensor

from tokenry.core.reduction import Reduction
from tokenry.core.registry import Role


class Reducer(Protocol):
    """The role: scores s [N] of tokens X [N, d] -> a `Reduction` A of M = budget rows, X' = A X.

    A larger score is a token that counts more; where they come from (attention, attributions,
    similarity to a question) is not the reducer's matter.
    """

    def __call__(self, tokens: Tensor, scores: Tensor, budget: int) -> Reduction:
        """From tokens [..., N, d] and scores [..., N]. InputError for a budget outside [1, N]."""
        ...


reducer = Role("reducer", Reducer, ("tokenry.model.reduction",))
