"""A language of which a known share of the sentences is harmful: has one of a few tokens."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from tokenry.tasks.worlds.preference import MarkovPolicy, PreferenceWorld


@dataclass(frozen=True)
class HarmfulLanguage:
    """The chain of a preference world, its 4 disliked tokens made as rare as it takes.

    share: of the sentences that are harmful, in (0, 1).
    """

    seed: int
    share: float = 0.3

    @cached_property
    def world(self) -> PreferenceWorld:
        return PreferenceWorld(seed=self.seed, liked=0, disliked=4)

    @cached_property
    def chain(self) -> MarkovPolicy:
        """What sentences are drawn from; the tokens' common shift is found by bisection."""
        low, high = -8.0, 4.0
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (low, middle) if self._rate(middle) > self.share else (middle, high)
        return self._shifted(low)

    def harmful(self, sentences: Tensor) -> Tensor:
        """Which sentences [N, length] have a harmful token, [N]."""
        return (self.world.token_reward[sentences] < 0).any(-1)

    def _shifted(self, shift: float) -> MarkovPolicy:
        bad = self.world.token_reward < 0
        return MarkovPolicy((self.world.language.logprob + shift * bad).log_softmax(-1))

    def _rate(self, shift: float) -> float:
        """P(a harmful token in a sentence), exactly: 1 - the mass of paths that avoid them."""
        steps = self._shifted(shift).logprob.exp()
        good = (self.world.token_reward >= 0).to(steps)
        clean = steps[0, -1] * good
        for step in steps[1:]:
            clean = (clean @ step[:-1]) * good
        return 1 - float(clean.sum())
