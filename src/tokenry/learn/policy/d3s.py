"""D3S: learn from the completions that differ most, and from their decisive tokens.

    of each group     the n completions whose advantages vary most
    of all of these   a share, those whose advantages vary most over the batch; those of groups of
                      equal rewards, which teach nothing, never
    of a completion   the ceil(K n_i) tokens of largest |A_i| H_it, the earlier one of equals

Advantages are those within the whole group, never normalised anew. H is the entropy of the sampling
policy. n and K run linearly over the training, from few to more. The loss is GRPO's, or GSPO's with
the ratio of the whole completion, and its means are over what is kept.

Source: Learning More with Less: A Dynamic Dual-Level Down-Sampling Framework for Efficient Policy
Optimization (arXiv 2509.22115). Reconstructed: the numbers of the schedule, roundings and ties, and
how many the second level keeps (by default all but those of groups of equal rewards).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from tokenry.core.checks import in_range, one_of, within
from tokenry.learn.objective import objective
from tokenry.learn.policy.down_sampling import select_rollouts, select_tokens
from tokenry.learn.policy.gradient import PolicyGradient, Preset
from tokenry.learn.policy.groups import GroupAdvantage
from tokenry.learn.policy.rollout_batch import Column, RolloutBatch
from tokenry.learn.policy.surrogate import Clip, SequenceRatio, TokenRatio


@dataclass(frozen=True)
class Schedule:
    """Completions of a group and share of their tokens, linear in the progress from 0 to 1."""

    count_start: int = 4
    count_end: int = 8
    share_start: float = 0.1
    share_end: float = 0.5

    def __call__(self, progress: float) -> tuple[int, float]:
        in_range("progress", progress, "[0, 1]")
        count = (1 - progress) * self.count_start + progress * self.count_end
        share = (1 - progress) * self.share_start + progress * self.share_end
        return max(2, math.floor(count + 0.5)), share


@dataclass(frozen=True)
class DownSample:
    """The axis that selects; with whole=True all tokens stay, for ratios that need them, and the
    column "token_share" weighs them."""

    schedule: Schedule
    cross: float | None
    whole: bool

    rollout_needs: ClassVar[tuple[str, ...]] = ("policy.entropy",)

    def __call__(self, rollouts: RolloutBatch, advantage: Tensor) -> Tensor:
        count, share = self.schedule(rollouts.progress)
        mask = rollouts.mask
        of_row = advantage.masked_fill(~mask, 0.0).sum(-1) / mask.sum(-1).clamp_min(1)
        rows = select_rollouts(of_row, rollouts.group, count, self.cross)[:, None]
        tokens = select_tokens(advantage, rollouts.old_entropy, mask, share)
        if not self.whole:
            return rows & tokens
        scale = mask.sum(-1, keepdim=True) / tokens.sum(-1, keepdim=True).clamp_min(1)
        rollouts.keep(token_share=tokens * scale)
        return rows & mask


@objective("d3s", paper=119)
@dataclass(frozen=True)
class D3S(Preset):
    """Dynamic Dual-Level Down-Sampling around GRPO or GSPO.

    Args:
        count_start: completions kept of a group, whole, in [2, inf).
        count_end: see `count_start`, in [2, inf).
        share_start: of their tokens, in (0, 1].
        share_end: see `share_start`, in (0, 1].
        cross: share of these that the batch keeps, in (0, 1]; None: no second level.
        ratio: "token" (GRPO) or "sequence" (GSPO, of whole completions).
        clip: bounds of the ratio, in (0, inf).
        clip_high: see `clip`, in (0, inf).
    """

    count_start: int = 4
    count_end: int = 8
    share_start: float = 0.1
    share_end: float = 0.5
    cross: float | None = 1.0
    ratio: Literal["token", "sequence"] = "token"
    clip: float = 0.2
    clip_high: float = 0.2

    def __post_init__(self) -> None:
        within(self, "[2, inf)", "count_start", "count_end", integer=True)
        within(self, "(0, 1]", "share_start", "share_end")
        within(self, "(0, 1]", "cross", optional=True)
        within(self, "(0, inf)", "clip", "clip_high")
        one_of("ratio", self.ratio, ("token", "sequence"))

    def composed(self) -> PolicyGradient:
        whole = self.ratio == "sequence"
        schedule = Schedule(self.count_start, self.count_end, self.share_start, self.share_end)
        return PolicyGradient(
            GroupAdvantage(),
            SequenceRatio() if whole else TokenRatio(),
            Clip(self.clip, self.clip_high),
            weights=(Column("token_share"),) if whole else (),
            aggregation="sequence-mean",
            select=(DownSample(schedule, self.cross, whole),),
        )
