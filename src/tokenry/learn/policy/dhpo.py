"""DHPO: a token's own ratio and its completion's, each clipped in its own region, then mixed.

    r_t = exp x_t,  s = exp( mean_t x_t )                       x: log-ratios
    u_t = w_t r_t + (1 - w_t) s
    v_t = w_t clip(r_t, token region) + (1 - w_t) clip(s, sequence region)
    maximise  min( u_t A, v_t A ),  with dual = c and A < 0:  max( that, c A )

or, with branch_min, w min(r A, clip(r) A) + (1 - w) min(s A, clip(s) A). The weight w_t is 1/2, or
the entropy of the sampling policy, from 0 at the completion's surest token to 1 at its least sure
one (1/2 where all are alike): uncertain tokens have the finer ratio, sure ones the steadier. It is
a constant. Clipping after mixing would be another algorithm: the two regions differ a thousandfold.

Source: Orchestrating Tokens and Sequences: Dynamic Hybrid Policy Optimization for RLVR (arXiv
2601.05607). Reconstructed: the entropy's scale and direction, the outer minimum, the bounds (GRPO's
and GSPO's). That each branch is clipped before the mixture is the paper's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from tokenry.core.checks import one_of, within
from tokenry.learn.objective import objective
from tokenry.learn.policy.gradient import PolicyGradient, Preset
from tokenry.learn.policy.groups import GroupAdvantage
from tokenry.learn.policy.hybrid import Bounds, entropy_weight, hybrid_surrogate
from tokenry.learn.policy.rollout_batch import RolloutBatch
from tokenry.learn.policy.surrogate import MixedRatio, SequenceRatio, TokenRatio

Mixing = Literal["average", "entropy"]


@dataclass(frozen=True)
class EntropyWeight:
    """`entropy_weight` of the sampling policy, for a `MixedRatio`."""

    rollout_needs = ("policy.entropy",)

    def __call__(self, rollouts: RolloutBatch) -> Tensor:
        return entropy_weight(rollouts.old_entropy, rollouts.mask)


@dataclass(frozen=True)
class HybridClip:
    """The axis: `hybrid_surrogate`; see `DHPO` for the fields."""

    weight: float | EntropyWeight
    token_clip: Bounds
    sequence_clip: Bounds
    dual: float | None
    branch_min: bool

    @property
    def axes(self) -> tuple[object, ...]:
        return (self.weight,) if callable(self.weight) else ()

    def __call__(
        self, ratio: Tensor, advantage: Tensor, log_ratio: Tensor, rollouts: RolloutBatch
    ) -> Tensor:
        token = TokenRatio()(log_ratio, rollouts)
        sequence = SequenceRatio()(log_ratio, rollouts)
        for name, own, (low, high) in (
            ("token", token, self.token_clip),
            ("sequence", sequence, self.sequence_clip),
        ):
            outside = (own < 1 - low) | (own > 1 + high)
            rollouts.report(f"outside/{name}", outside.to(own.dtype))
        weight = self.weight(rollouts) if callable(self.weight) else self.weight
        bounds = self.token_clip, self.sequence_clip
        return hybrid_surrogate(
            token, sequence, weight, advantage, *bounds, self.dual, self.branch_min
        )


@objective("dhpo", paper=6)
@dataclass(frozen=True)
class DHPO(Preset):
    """Dynamic Hybrid Policy Optimization: between GRPO (w = 1) and GSPO (w = 0).

    Args:
        mixing: "entropy", or "average" for the same weight everywhere.
        weight: of the token's ratio under "average", in [0, 1].
        clip: how far a token's ratio may fall and rise, in (0, inf).
        clip_high: see `clip`, in (0, inf).
        sequence_clip: how far a completion's may, in (0, inf).
        sequence_clip_high: see `sequence_clip`, in (0, inf).
        dual: bound on what a bad token's ratio may cost, in (1, inf), 10 say; None: none.
        branch_min: take the minimum in each branch and mix the minima.
    """

    mixing: Mixing = "entropy"
    weight: float = 0.5
    clip: float = 0.2
    clip_high: float = 0.2
    sequence_clip: float = 3e-4
    sequence_clip_high: float = 4e-4
    dual: float | None = None
    branch_min: bool = False

    def __post_init__(self) -> None:
        one_of("mixing", self.mixing, ("average", "entropy"))
        within(self, "[0, 1]", "weight")
        within(self, "(0, inf)", "clip", "clip_high", "sequence_clip", "sequence_clip_high")
        within(self, "(1, inf)", "dual", optional=True)

    def composed(self) -> PolicyGradient:
        weight = EntropyWeight() if self.mixing == "entropy" else self.weight
        clip = HybridClip(
            weight,
            (self.clip, self.clip_high),
            (self.sequence_clip, self.sequence_clip_high),
            self.dual,
            self.branch_min,
        )
        return PolicyGradient(
            GroupAdvantage(eps=1e-6), MixedRatio(weight), clip, aggregation="sequence-mean"
        )
