"""GRPO and its nearest relatives: one assignment of axes each.

    grpo      group-normalised advantage, token ratio, clip 0.2, mean of completions' token means
    dr-grpo   no division by the spread, sum over a constant length: neither bias
    dapo      clip 0.2 / 0.28, mean over all tokens, groups of equal rewards left out
    gspo      the completion's ratio, clip 3e-4 / 4e-4
    cispo     truncated importance weight in front of REINFORCE, mean over all tokens

Sources: DeepSeekMath (arXiv 2402.03300); Understanding R1-Zero-Like Training: A Critical
Perspective (arXiv 2503.20783); DAPO: An Open-Source LLM Reinforcement Learning System at Scale
(arXiv 2503.14476); Group Sequence Policy Optimization (arXiv 2507.18071); MiniMax-M1 (arXiv
2506.13585). Values and gradients are those of TRL's GRPOTrainer with the same settings.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from tokenry.core.checks import within
from tokenry.learn.objective import objective
from tokenry.learn.policy.gradient import PolicyGradient, Preset
from tokenry.learn.policy.groups import GroupAdvantage, some_spread
from tokenry.learn.policy.regularizers import KL
from tokenry.learn.policy.surrogate import Clip, SequenceRatio, TokenRatio, Truncated


def pull(beta: float, corrected: bool = False) -> KL | None:
    return KL(beta, corrected=corrected) if beta > 0 else None


@objective("grpo", paper=None)
@dataclass(frozen=True)
class GRPO(Preset):
    """Group Relative Policy Optimization: the baseline of policies with verifiable rewards.

    clip: how far a token's ratio may move from 1, > 0. beta: weight of the KL (k3) to the
    reference, >= 0; without it no reference is needed. corrected: that KL times the ratio, with the
    gradient of the reverse KL; the paper's is without.
    """

    clip: float = 0.2
    beta: float = 0.0
    corrected: bool = False

    def __post_init__(self) -> None:
        within(self, "(0, inf)", "clip")
        within(self, "[0, inf)", "beta")

    def composed(self) -> PolicyGradient:
        return PolicyGradient(
            GroupAdvantage(),
            TokenRatio(),
            Clip(self.clip, self.clip),
            regularizer=pull(self.beta, self.corrected),
            aggregation="sequence-mean",
        )


@objective("dr-grpo", paper=None)
@dataclass(frozen=True)
class DrGRPO(GRPO):
    """GRPO done right: no division by a group's spread nor by a completion's length.

    length: tokens that every completion's sum is divided by, its possible length, > 0.
    """

    length: float = 256.0

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, "(0, inf)", "length")

    def composed(self) -> PolicyGradient:
        return replace(
            super().composed(),
            advantage=GroupAdvantage(scale="none"),
            aggregation="constant-length",
            length=self.length,
        )


@objective("dapo", paper=None)
@dataclass(frozen=True)
class DAPO(GRPO):
    """Decoupled clip and dynamic sampling: GRPO that lets rare tokens rise.

    clip_high: upper bound, > 0; `clip` is the lower one. dynamic: leave out groups whose rewards
    are all equal.
    """

    clip_high: float = 0.28
    dynamic: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, "(0, inf)", "clip_high")

    def composed(self) -> PolicyGradient:
        return replace(
            super().composed(),
            clip=Clip(self.clip, self.clip_high),
            aggregation="token-mean",
            select=(some_spread,) if self.dynamic else (),
        )


@objective("gspo", paper=None)
@dataclass(frozen=True)
class GSPO(GRPO):
    """Group Sequence Policy Optimization: the ratio of whole completions, in a far narrower clip.

    clip, clip_high: bounds below and above, > 0.
    """

    clip: float = 3e-4
    clip_high: float = 4e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, "(0, inf)", "clip_high")

    def composed(self) -> PolicyGradient:
        clip = Clip(self.clip, self.clip_high)
        return replace(super().composed(), ratio=SequenceRatio(), clip=clip)


@objective("cispo", paper=None)
@dataclass(frozen=True)
class CISPO(Preset):
    """Clipped IS-weight Policy Optimization: no token loses its gradient, its weight is bounded.

    most: largest importance weight, > 0. beta: weight of the KL to the reference, >= 0.
    """

    most: float = 5.0
    beta: float = 0.0

    detaches: ClassVar[str] = "the importance weight in front of log pi"

    def __post_init__(self) -> None:
        within(self, "(0, inf)", "most")
        within(self, "[0, inf)", "beta")

    def composed(self) -> PolicyGradient:
        return PolicyGradient(
            GroupAdvantage(),
            TokenRatio(),
            Truncated(self.most),
            regularizer=pull(self.beta),
            aggregation="token-mean",
        )
