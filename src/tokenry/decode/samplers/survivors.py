"""Sampling without replacement, no further than it is walked.

Ordering a vocabulary by Gumbel keys, log p - log(-log u), is the same as drawing from p again and
again and skipping what was drawn before. A sampler that stops after a few tokens needs a few draws:
they are made by inverse transform, for all rows at once, from one cumulative sum in float64. When
they are used up, more are made from the tokens that are left. Nothing is sorted.

Probabilities are taken relative to the likeliest token, in float32 for the first draws and in
float64 for what is left after them. Tokens too unlikely for that wait below: `descend` takes the
likeliest of them as the new measure, so that no token that the model can write is lost.
"""

import math

import numpy as np
import torch
from torch import Tensor

FIRST_DRAWS = 16
MOST_DRAWS = 4096
FLOOR = -700.0  # exp of less than this loses digits in float64


def draw_survivors(logprobs: Tensor, generator: torch.Generator) -> list["Survivors"]:
    """One `Survivors` for each row of `logprobs` `[P, V]`, with the first draws made together."""
    logprobs = logprobs.detach()
    if logprobs.dtype != torch.float64:
        logprobs = logprobs.float()
    tops = logprobs.amax(-1)  # [P]
    shifts = torch.where(tops.isfinite(), tops, 0.0)
    probs = (logprobs - shifts[:, None]).exp()  # [P, V], the likeliest token has 1
    cumulative = probs.cumsum(-1, dtype=torch.float64)
    totals = cumulative[:, -1:]
    points = torch.rand(
        len(probs), FIRST_DRAWS, generator=generator, dtype=torch.float64, device=generator.device
    )
    drawn = torch.searchsorted(cumulative, points.to(totals.device) * totals, right=True)
    return [
        Survivors(row, logs, shift, total, tokens, generator)
        for row, logs, shift, total, tokens in zip(
            probs.cpu().numpy(),
            logprobs.cpu().numpy(),
            shifts.tolist(),
            totals[:, 0].tolist(),
            drawn.tolist(),
            strict=True,
        )
    ]


class Survivors:
    """The tokens of one distribution that are not banned, and draws from them.

    mass: what they hold, as a fraction of the whole. top: the largest probability of all. The whole
    is exp(log_total): all tokens at first, after `descend` those that were left.
    """

    def __init__(
        self,
        probs: np.ndarray,
        logprobs: np.ndarray,
        shift: float,
        total: float,
        drawn: list[int],
        generator: torch.Generator,
    ):
        self._probs, self._logprobs = probs, logprobs  # [V]; shared with the caller until `_remove`
        self._shift = shift  # probs = exp(logprobs - shift)
        self._measured_from(total)
        self._banned: set[int] = set()
        self._kept: np.ndarray | None = None
        self._drawn, self._position = drawn, 0
        self._generator = generator
        self._owned = False

    def draw(self) -> int | None:
        """A token with probability p / mass; None when nothing is left."""
        while self.mass > 0.0:
            while self._position < len(self._drawn):
                token = self._drawn[self._position]
                self._position += 1
                if token not in self._banned:
                    return token
            self._refill()
        return None

    def ban(self, token: int) -> float:
        """Ban a token; its probability, as a fraction of the whole."""
        self._banned.add(token)
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
        """Ban everything outside `mask` `[V]`; the mass that is left."""
        self._kept = mask.cpu().numpy()
        self._owned = False
        self._remove()
        self._drawn, self._position = [], 0
        self._measure()
        return self.mass

    def descend(self) -> bool:
        """When `mass` is used up: make the tokens too unlikely for it, if any, the new whole."""
        if self.mass > 0.0:
            return False
        left = self._left()
        left = left[self._logprobs[left] > -np.inf]
        if not len(left):
            return False
        self._shift = float(self._logprobs[left].max())
        self._owned = False
        self._remove()
        self._drawn, self._position = [], 0
        self._measured_from(float(self._probs.sum()))
        return True

    def _measured_from(self, total: float) -> None:
        self._total = total
        self.log_total = math.log(total) + self._shift if total > 0 else float("-inf")
        self.mass = 1.0 if total > 0 else 0.0
        self.top = 1.0 / total if total > 0 else 0.0
        self._exact = self.mass  # `mass` when it was last summed up

    def _left(self) -> np.ndarray:
        """The tokens that are neither banned nor outside the mask."""
        left = np.ones(len(self._logprobs), bool) if self._kept is None else self._kept.copy()
        left[list(self._banned)] = False
        return np.flatnonzero(left)

    def _remove(self) -> None:
        if not self._owned:
            left, self._owned = self._left(), True
            self._probs = np.zeros(len(self._logprobs))
            relative = self._logprobs[left].astype(np.float64) - self._shift
            self._probs[left] = np.where(relative > FLOOR, np.exp(relative), 0.0)
        self._probs[list(self._banned)] = 0.0

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
