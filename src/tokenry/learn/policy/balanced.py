"""Balanced Aggregation: good and bad completions of a group are averaged apart.

With l_it the terms of the clipped surrogate, n_i tokens in completion i, P and N the completions of
a group of G with A > 0 and A < 0:

    loss = mean over groups of  |P|/G  sum_P sum_t l_it / sum_P n_i
                             +  |N|/G  sum_N sum_t l_it / sum_N n_i

Under a mean over all tokens the sign whose completions are longer pulls harder, by the ratio of
their mean lengths; under a mean of completions' means a token of a long completion weighs less.
Here all tokens of a sign weigh the same and a sign's total weight knows no length. A side without
completions adds 0. Completions with A = 0 add 0 and count in G.

Source: Balanced Aggregation: Understanding and Fixing Aggregation Bias in GRPO (arXiv 2605.04077).
Reconstructed: that completions with A = 0 count, and the mean over groups.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tokenry.learn.objective import objective
from tokenry.learn.policy.gradient import PolicyGradient
from tokenry.learn.policy.presets import GRPO


@objective("balanced", paper=117)
@dataclass(frozen=True)
class Balanced(GRPO):
    """GRPO under Balanced Aggregation; any other policy gradient takes aggregation="balanced".

    Its fields are GRPO's.
    """

    def composed(self) -> PolicyGradient:
        return replace(super().composed(), aggregation="balanced")
