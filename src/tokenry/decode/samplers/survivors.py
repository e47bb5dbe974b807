"""Sampling without replacement, no further than it is walked.

Ordering a vocabulary by Gumbel keys, log p - log(-log u), is the same as drawing from p again and
again and skipping what was drawn before. A sampler that stops after a few tokens needs a few draws:
they are made by inverse transform, for all rows at once, from one cumulative sum in float64. When
they are used up, more are made from the tokens that are left. Nothing is sorted.
"""

import math

import numpy as np
import torch
from torch import Tensor

FIRST_DRAWS = 16
MOST_DRAWS = 4096


def draw_survivors(logprobs: Tensor, generator: torch.Generator) -> list["Survivors"]:
    """One `Survivors` for each row of `logprobs` `[P, V]`, with the first draws made together."""
    logprobs = logprobs.detach()
    if logprobs.dtype != torch.float64:
        logprobs = logprobs.float()
    probs = logprobs.exp()  # [P, V]
    cumulative = probs.cumsum(-1, dtype=torch.float64)
    totals = cumulative[:, -1:]
    points = torch.rand(
        len(probs), FIRST_DRAWS, generator=generator, dtype=torch.float64, device=generator.device
    )
    drawn = torch.searchsorted(cumulative, points.to(totals.device) * totals, right=True)
    rows, tops = probs.cpu().numpy(), probs.amax(-1).tolist()
    return [
        Survivors(row, total, top, tokens, generator)
        for row, total, top, tokens in zip(
            rows, totals[:, 0].tolist(), tops, drawn.tolist(), strict=True
        )
    ]


class Survivors:
    """The tokens of one distribution that are not struck out, and draws from them.

    mass: what they hold, as a fraction of the whole. top: the largest probability of all.
    """

    def __init__(
        self,
        probs: np.ndarray,
        total: float,
        top: float,
        drawn: list[int],
        generator: torch.Generator,
    ):
        self.log_total = math.log(total) if total > 0 else float("-inf")
        self.mass = 1.0 if total > 0 else 0.0
        self.top = top / total if total > 0 else 0.0
        self._probs, self._total = probs, total  # [V]; shared with the caller until `_refill`
        self._struck: set[int] = set()
        self._drawn, self._position = drawn, 0
        self._generator = generator
        self._owned = False
        self._exact = 1.0  # `mass` when it was last summed up

    def draw(self) -> int | None:
        """A token with probability p / mass; None when nothing is left."""
        while self.mass > 0.0:
            while self._position < len(self._drawn):
                token = self._drawn[self._position]
                self._position += 1
                if token not in self._struck:
                    return token
            self._refill()
        return None

    def strike(self, token: int) -> float:
        """Take a token out; its probability, as a fraction of the whole."""
        self._struck.add(token)
        probability = float(self._probs[token]) / self._total
        self.mass -= probability
        # a difference of nearly equal numbers says nothing: sum what is left instead
        if self.mass < 1e-6 * self._exact:
            self._remove()
            self._measure()
        return probability

    def repeats(self, chance: float) -> float:
        """Failures before the first success of trials with the given chance (geometric)."""
        uniform = 1.0 - float(torch.rand((), generator=self._generator, dtype=torch.float64))
        return math.floor(math.log(uniform) / math.log1p(-chance)) if chance < 1.0 else 0.0

    def keep(self, mask: Tensor) -> float:
        """Strike out everything outside `mask` `[V]`; the mass that is left."""
        self._remove()
        self._probs[~mask.cpu().numpy()] = 0.0
        self._drawn, self._position = [], 0
        self._measure()
        return self.mass

    def _remove(self) -> None:
        if not self._owned:
            self._probs, self._owned = self._probs.copy(), True
        self._probs[list(self._struck)] = 0.0

    def _measure(self) -> None:
        self.mass = self._exact = float(self._probs.sum(dtype=np.float64)) / self._total

    def _refill(self) -> None:
        self._remove()
        cumulative = self._probs.cumsum(dtype=np.float64)
        self.mass = self._exact = float(cumulative[-1]) / self._total
        if self.mass <= 0.0:
            return
        count = min(2 * max(len(self._drawn), FIRST_DRAWS), MOST_DRAWS)
        points = torch.rand(count, generator=self._generator, dtype=torch.float64)
        drawn = np.searchsorted(cumulative, points.numpy() * cumulative[-1], side="right")
        self._drawn, self._position = drawn.tolist(), 0
