"""InTRO: a policy that knows the answer says how good each token of its own rationales is.

Rationales z are drawn from pi(. | x), those with the right answer y are kept. At each position t,

    candidates   v_1 = z_t,   v_2 .. v_n ~ pi(. | x, z_<t)
    w_i          = min( pi(v_i | x + y, z_<t) / pi(v_i | x, z_<t), clip )           a constant
    loss         = - mean over kept z of  (1 / |z|) sum_t (1 / n) sum_i w_i log pi(v_i | x, z_<t)

x + y is the prompt with the answer behind it; its two distributions stand where the rationale's
own tokens do, whatever the prompts' lengths. With candidates from pi the mean gradient is that of
KL( pi(. | x + y, z_<t) || pi(. | x, z_<t) ), its left side constant, but for the clip and for the
first candidate; `full_vocab` takes this divergence itself as the loss.

    train("intro", data, source="known-answers", rewards=[right], samples=4)

Source: In-Token Rationality Optimization: Towards Accurate and Concise LLM Reasoning via
Self-Feedback (arXiv 2511.09865). Reconstructed: that the first candidate is always the rationale's
own token. Candidates are drawn at each update, from the policy of that update.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenry.core.candidates import choice_logprob, fused_draws
from tokenry.core.checks import within
from tokenry.core.fused_divergence import fused_divergence
from tokenry.learn.objective import Example, objective
from tokenry.learn.policy.gradient import PolicyGradient, Preset
from tokenry.learn.policy.rollout_batch import RolloutBatch
from tokenry.learn.policy.terms import Hinted

LOWEST = -1e4  # of log-probabilities: what is impossible twice has the ratio 1


def correction_factors(logprob: Tensor, hinted_logprob: Tensor, clip: float = 200.0) -> Tensor:
    """w of tokens from their two log-probabilities, of the same shape; a constant."""
    known, plain = (x.detach().clamp_min(LOWEST) for x in (hinted_logprob, logprob))
    return (known - plain).clamp_max(math.log(clip)).exp()


@dataclass(frozen=True)
class RightAnswers:
    """The axis: 1 for completions with a positive reward, which alone are learned from; else 0."""

    def __call__(self, rollouts: RolloutBatch) -> Tensor:
        return (rollouts.total_reward > 0).to(rollouts.total_reward.dtype)


def right(rollouts: RolloutBatch, advantage: Tensor) -> Tensor:
    """True on completions with a positive reward, [B]."""
    return rollouts.total_reward > 0


@dataclass(frozen=True)
class SelfFeedback:
    """The surrogate: mean_i w_i log pi(v_i), or minus the divergence; [B, T]."""

    hint: Hinted
    candidates: int
    clip: float
    full_vocab: bool

    needs: ClassVar[tuple[str, ...]] = ("policy.hidden", "policy@hinted.hidden")

    @property
    def axes(self) -> tuple[Any, ...]:
        return (self.hint,)

    def __call__(
        self, ratio: Tensor, advantage: Tensor, log_ratio: Tensor, rollouts: RolloutBatch
    ) -> Tensor:
        mask, own, known = rollouts.mask, rollouts.scores(), rollouts.scores("policy@hinted")
        hidden, head = own.need("hidden")[mask], own.need("head")
        told, other = known.need("hidden")[mask].detach(), known.need("head")
        if self.full_vocab:
            value = -fused_divergence(hidden, head, told, other)
        else:
            taken = rollouts.batch.ids[mask][:, None]
            drawn = [fused_draws(hidden, head, self.candidates - 1)] if self.candidates > 1 else []
            ids = torch.cat([taken, *drawn], 1)
            logprob = choice_logprob(hidden, head, ids)
            with torch.no_grad():
                weight = correction_factors(logprob, choice_logprob(told, other, ids), self.clip)
                feedback = torch.zeros_like(log_ratio).masked_scatter(mask, weight[:, 0])
            rollouts.report("feedback", feedback)
            value = (weight * logprob.clamp_min(LOWEST)).mean(-1)
        placed = torch.zeros_like(log_ratio).masked_scatter(mask, value.to(log_ratio.dtype))
        return placed * advantage

    def clipped(self, ratio: Tensor, advantage: Tensor, rollouts: RolloutBatch) -> Tensor:
        """Nothing: there is no bound on the ratio to the policy that sampled."""
        return torch.zeros_like(rollouts.mask)


def _examples() -> list[Example]:
    columns = {
        "hint": lambda batch, reward: batch.ids[:, :1],
        "reward": lambda _, reward: reward**2,
    }
    return [Example(InTRO(candidates=1), columns), Example(InTRO(full_vocab=True), columns)]


@objective("intro", paper=25, examples=_examples)
@dataclass(frozen=True)
class InTRO(Preset):
    """In-Token Rationality Optimization; rewards above 0 mean a right answer.

    Args:
        candidates: n, tokens a position, in [1, inf); 1 is the rationale's own.
        clip: largest correction factor, in (0, inf).
        full_vocab: the exact divergence instead of candidates.
        hint: ids of one answer to all prompts; (): the rollouts' column "hint".
    """

    candidates: int = 5
    clip: float = 200.0
    full_vocab: bool = False
    hint: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        within(self, "[1, inf)", "candidates", integer=True)
        within(self, "(0, inf)", "clip")

    @property
    def rollout_source(self) -> str:  # type: ignore[override]
        return "plain" if self.hint else "known-answers"

    @property
    def detaches(self) -> str:  # type: ignore[override]
        """The correction factors; the divergence's left side is no entry of the policy's."""
        return "" if self.full_vocab else "the correction factors"

    def composed(self) -> PolicyGradient:
        hint = Hinted(self.hint) if self.hint else Hinted(column="hint")
        return PolicyGradient(
            RightAnswers(),
            clip=SelfFeedback(hint, self.candidates, self.clip, self.full_vocab),
            select=(right,),
            aggregation="sequence-mean",
        )
