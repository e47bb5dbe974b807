"""What a token sampler is: it draws one token and says how much the draw counts for.

Given next-token probabilities p and a constraint that accepts some tokens, a sampler returns a
token x and a weight w that are *properly weighted*: for every function f,

    E[w f(x)] = Σ_x p(x) accept(x) f(x).

With f = 1, the weight is an unbiased estimate of the accepted mass Z = Σ_x p(x) accept(x). That is
all that sequential Monte Carlo (`smc`) needs to sample whole texts from the constrained model.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from tokenry.core.registry import Role
from tokenry.decode.constraints.base import State

NOTHING = -1


class Step(NamedTuple):
    """One drawn token.

    Attributes:
        log_weight: -inf when the draw failed; `token` is then -1.
        checks: single-token questions to the constraint.
        masks: whole-vocabulary ones.
    """

    token: int
    log_weight: float
    checks: int = 0
    masks: int = 0


DEAD = float("-inf")


class TokenSampler(Protocol):
    """The role: one token x and its weight w from next-token probabilities p and a constraint, with
    E[w f(x)] = sum_x p(x) accept(x) f(x) for every f."""

    def step(self, logprobs: Tensor, state: State, generator: torch.Generator) -> Step:
        """One draw from `logprobs` `[V]` at one state of the constraint."""
        return self.steps(logprobs[None], [state], generator)[0]

    def steps(
        self, logprobs: Tensor, states: Sequence[State], generator: torch.Generator
    ) -> list[Step]:
        """One draw for each row of `logprobs` `[P, V]`, each with its state."""
        ...


sampler = Role("token sampler", TokenSampler, ("tokenry.decode.samplers",))


def drawn_tokens(cumulative: Tensor, generator: torch.Generator) -> Tensor:
    """One index `[P]` from each row of cumulative sums of weights `[P, V]`, by inverse transform.

    In float64 rare tokens keep their exact chance. The last sum need not be one.
    """
    points = torch.rand(len(cumulative), 1, generator=generator, dtype=torch.float64)
    points = points.to(cumulative.device) * cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, points, right=True)[:, 0]
    return tokens.clamp(max=cumulative.shape[-1] - 1)


def fitted_mask(state: State, size: int) -> Tensor:
    """A state's mask as bool `[size]`: a model's output is often padded beyond the vocabulary."""
    mask = state.mask()
    if mask.shape[0] < size:
        return torch.nn.functional.pad(mask, (0, size - mask.shape[0]))
    return mask[:size]
