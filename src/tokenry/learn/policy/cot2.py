"""CoT2: GRPO over thoughts that are mixtures of K sampled tokens.

A thought of draws i_1 .. i_K has the ratio

    u_t = exp( (1/K) sum_r [ log pi(i_r | s_t) - log pi_old(i_r | s_t) ] )

the geometric mean of theirs; the answer's tokens have their own. With m steps of a completion,

    A    = (R - mean) / std                        population, over the completions of a prompt
    loss = - mean over completions of (1/m) sum_t min( u_t A, clip(u_t, 1 - c, 1 + c) A )

Gradients flow through the logits along the mixtures that were read, not through the draws; rollouts
are those of the source "mixtures".

    train("cot2", prompts, source=Mixtures(tokens=3, thoughts=4), rewards=[right], samples=8)

Source: Continuous Chain of Thought Enables Parallel Exploration and Reasoning (arXiv 2505.23648)
and its code. Its other sampling, draws from softmax(z / K) with the product of the K ratios, is
`mts_log_ratio(..., normalize=True)` alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from tokenry.core.errors import ShapeError
from tokenry.learn.objective import objective
from tokenry.learn.policy.gradient import PolicyGradient
from tokenry.learn.policy.groups import GroupAdvantage
from tokenry.learn.policy.presets import GRPO


def mts_log_ratio(logits: Tensor, old_logits: Tensor, tokens: Tensor, normalize: bool) -> Tensor:
    """log u of each thought, [...], from logits [..., V] of both policies and draws [..., K].

    Args:
        normalize: the draws were from softmax(z / K), and u is the product of their ratios under
            it; False: from softmax(z), and u is the geometric mean.
    """
    if logits.shape != old_logits.shape or tokens.shape[:-1] != logits.shape[:-1]:
        raise ShapeError(
            f"logits {[*logits.shape]} and {[*old_logits.shape]} and draws {[*tokens.shape]} must "
            "be [..., V], [..., V] and [..., K]"
        )
    count = tokens.shape[-1] if normalize else 1
    new, old = ((z.float() / count).log_softmax(-1) for z in (logits, old_logits.detach()))
    log_ratio = new.gather(-1, tokens) - old.gather(-1, tokens)
    return log_ratio.sum(-1) if normalize else log_ratio.mean(-1)


@objective("cot2", paper=129)
@dataclass(frozen=True)
class CoT2(GRPO):
    """Policy optimisation of continuous chains of thought, with multi-token sampling.

    Args:
        clip: how far a step's ratio may move from 1, in (0, inf).
    """

    clip: float = 0.1

    rollout_source = "mixtures"

    def composed(self) -> PolicyGradient:
        return replace(super().composed(), advantage=GroupAdvantage(eps=1e-12, unbiased=False))
