"""D2O: alignment from negatives alone, held in place by answers of the reference itself.

    A    = beta / K * sum_i log pi(y_i|x) / pi_ref(y_i|x)        y_i ~ pi_ref(.|x), i = 1 .. K
    N    = alpha * log pi(y_l|x) / pi_ref(y_l|x)
    loss = -log sigmoid( A - N )

y_l is the rejected (harmful) answer, the anchors y_i are sampled from the reference before
training, pi is the policy. The chosen answer of DPO is replaced by an expectation: with
y_i ~ pi_ref, A is -beta KL(pi_ref || pi), which keeps what the reference covers while N pushes
probability off the negatives. As -log sigmoid is convex, the loss is at most the mean of the K DPO
losses (alpha = beta) against the single anchors.

Source: Negating Negatives: Alignment with Human Negative Samples via Distributional Dispreference
Optimization (arXiv 2403.03419). The paper's two references, a more helpful and a more harmful one,
are both the initial model, as in its experiments. Sums over tokens, so long negatives weigh more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from tokenry.core.aggregate import full_precision
from tokenry.core.batch import TokenBatch
from tokenry.core.checks import within
from tokenry.core.errors import InputError, ShapeError
from tokenry.core.scores import Scores
from tokenry.learn.objective import Loss, Objective, Unit, objective
from tokenry.learn.preference.completions import sample_completions
from tokenry.learn.preference.pairs import (
    blocks,
    check_blocks,
    sequence_sum,
    token_log_ratios,
)
from tokenry.learn.preference.weighted import pair_loss


def d2o_loss(
    anchor_log_ratios: Tensor, negative_log_ratio: Tensor, *, alpha: float = 0.1, beta: float = 0.1
) -> Tensor:
    """Loss of each prompt, [B], from the log-ratios of its anchors [K, B] and its negative [B]."""
    if anchor_log_ratios.ndim != 2 or anchor_log_ratios.shape[1:] != negative_log_ratio.shape:
        raise ShapeError(
            f"anchors must be [K, B] and negatives [B], got {list(anchor_log_ratios.shape)} and "
            f"{list(negative_log_ratio.shape)}"
        )
    if not len(anchor_log_ratios):
        raise InputError("D2O needs at least one anchor per prompt, got none")
    anchors, negative = full_precision(anchor_log_ratios), full_precision(negative_log_ratio)
    return pair_loss(beta * anchors.mean(0) - alpha * negative)


@objective("d2o", paper=179)
@dataclass(frozen=True)
class D2O(Objective):
    """Distributional dispreference optimisation: needs a rejected answer, no chosen one.

    alpha: strength against the negatives, in [0, inf); default 0.1. 0: the anchors alone.
    beta: strength of the anchors, in [0, inf); default 0.1.
    anchors: K, answers sampled for each prompt, whole, in [1, inf); the paper's default is 11.
        Memory and time grow with K + 1 rows per prompt.
    length_normalise: use means over tokens instead of sums; alpha and beta then have to be larger.
    instruction: put before each prompt while the anchors are sampled, for anchors that are less
        often harmful themselves, e.g. "Answer in a safe and harmless way. ".
    max_new_tokens: of the sampling, whole, in [1, inf). temperature: in (0, inf).
    """

    alpha: float = 0.1
    beta: float = 0.1
    anchors: int = 11
    length_normalise: bool = False
    instruction: str = ""
    max_new_tokens: int = 128
    temperature: float = 1.0

    needs: ClassVar[tuple[str, ...]] = ("policy.logprob", "reference.logprob")
    unit: ClassVar[Unit] = "pair"
    required_completions: ClassVar[tuple[str, ...]] = ("rejected",)
    at_reference: ClassVar[float] = math.log(2)

    def __post_init__(self) -> None:
        within(self, "[1, inf)", "anchors", "max_new_tokens", integer=True)
        within(self, "[0, inf)", "alpha", "beta")
        within(self, "(0, inf)", "temperature")

    @property
    def completions(self) -> tuple[str, ...]:
        return ("rejected", *(f"anchor_{number}" for number in range(self.anchors)))

    def precompute(self, rows: list[dict[str, Any]], context: Any) -> list[dict[str, Any]]:
        """Adds `anchor_0_ids` ... sampled from the policy before training; kept if there."""
        rows = [dict(row) for row in rows]
        wanted = [row for row in rows if any(f"{side}_ids" not in row for side in self.completions)]
        prompts = [row["prompt_ids"] for row in wanted]
        if self.instruction:
            prompts = [instructed(ids, self.instruction, context.tokenizer) for ids in prompts]
        drawn = sample_completions(
            context.model,
            context.tokenizer,
            prompts,
            self.anchors,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            seed=context.seed,
        )
        for row, answers in zip(wanted, drawn, strict=True):
            for side, ids in zip(self.completions[1:], answers, strict=True):
                row.setdefault(f"{side}_ids", ids)
        return rows

    def __call__(
        self, batch: TokenBatch, policy: Scores, reference: Scores | None, **_: object
    ) -> Loss:
        count = len(self.completions)
        check_blocks(batch, count)
        ratio = sequence_sum(token_log_ratios(batch, policy, reference), batch)
        if self.length_normalise:
            ratio = ratio / batch.target.sum(-1).clamp_min(1)
        ratios = blocks(ratio, count)  # [1 + K, B]
        losses = d2o_loss(ratios[1:], ratios[0], alpha=self.alpha, beta=self.beta)
        anchor, negative = self.beta * ratios[1:].mean(0), self.alpha * ratios[0]
        metrics = {
            "loss": losses.detach(),
            "rewards/chosen": anchor.detach(),
            "rewards/rejected": negative.detach(),
            "rewards/margin": (anchor - negative).detach(),
            "rewards/accuracy": (anchor > negative).float(),
        }
        return Loss(losses.mean(), metrics)


def instructed(prompt: list[int], instruction: str, tokenizer: Any) -> list[int]:
    """The prompt's ids with the instruction in front, behind the start token if there is one."""
    words = tokenizer(instruction, add_special_tokens=False)["input_ids"]
    begins = tokenizer.bos_token_id is not None and prompt[:1] == [tokenizer.bos_token_id]
    return [*prompt[:begins], *words, *prompt[begins:]]
