"""ACT: rank sampled responses by the share of checkable constraints that they satisfy.

    p_i  = 1 / |y_i|^power * sum_t log pi(y_i,t | x, y_i,<t)                 score of response i
    loss = sum_{i, j: CSR_i < CSR_j} max(0, p_i - p_j + margin (CSR_j - CSR_i))
           - ft_weight * p_best                                                    per prompt

CSR_i in [0, 1] is the constraint satisfaction rate of response y_i to prompt x
(`tasks.verifiers.programs`), pi the policy, |y| a response's tokens with its end token, best =
argmax CSR (ties: the highest p). Pairs of equal CSR say nothing. Neither labels nor a reference
model are needed.

Source: From Instructions to Constraints: Language Model Alignment with Automatic Constraint
Verification (arXiv 2403.06326). Reconstructed: the exact ranking loss (a hinge on length-normalised
log-probabilities plus likelihood of the best response), the margin and the number of samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenry.core.aggregate import full_precision
from tokenry.core.batch import TokenBatch
from tokenry.core.checks import within
from tokenry.core.errors import InputError, ShapeError
from tokenry.core.scores import Scores
from tokenry.learn.objective import PAIR, Loss, Objective, Unit, objective
from tokenry.learn.preference.completions import sample_completions
from tokenry.learn.preference.pairs import sequence_sum
from tokenry.tasks.verifiers.programs import ConstraintSet


def rank_loss(
    scores: Tensor,
    csr: Tensor,
    group: Tensor | None = None,
    *,
    margin: float = 0.0,
    ft_weight: float = 1.0,
    skip_ties: bool = False,
) -> Tensor:
    """Loss of each prompt, [G], from the scores p [N] and satisfaction rates [N] of N responses.

    group: [N] numbers, which responses answer the same prompt (None: all); any number of responses
    for a prompt will do. The losses come in the order of the groups' numbers. skip_ties: a prompt
    whose responses all have the same rate counts 0 instead of training on its best one.
    """
    if scores.ndim != 1 or csr.shape != scores.shape:
        raise ShapeError(
            f"scores and csr must be [N] alike, got {list(scores.shape)} and {list(csr.shape)}"
        )
    scores = full_precision(scores)
    if not len(scores):
        raise InputError("there are no responses to rank: give at least one")
    csr = csr.to(scores)
    group = torch.zeros_like(csr, dtype=torch.long) if group is None else group
    numbers, place = group.unique(return_inverse=True)
    gap = csr[None, :] - csr[:, None]  # [i, j]: how much better j is
    ordered = (place[None, :] == place[:, None]) & (gap > 0)
    hinge = (scores[:, None] - scores[None, :] + margin * gap).clamp_min(0)
    losses = scores.new_zeros(len(numbers))
    losses = losses.index_add(0, place, torch.where(ordered, hinge, 0.0).sum(1))
    best = torch.stack([_best(scores, csr, place == n) for n in range(len(numbers))])
    ranked = torch.zeros_like(losses).index_add(0, place, ordered.any(1).to(losses)) > 0
    follow = torch.where(ranked, 1.0, 0.0 if skip_ties else 1.0)
    return losses - ft_weight * follow * scores[best]


@objective("act", paper=9)
@dataclass(frozen=True)
class ACT(Objective):
    """Alignment with automatic constraint verification.

    margin: how much larger p must be per unit of CSR, nats per token, in [0, inf); 0 is the plain
        hinge.
    ft_weight: weight of the likelihood of the best response, in [0, inf); 1 keeps the text fluent.
    length_power: power of the length in p, in [0, inf); 1 is the mean log-probability per token, 0
        the sum.
    skip_ties: leave prompts out whose responses all have the same CSR.
    samples: responses to sample for each prompt before training, whole, in [0, inf) (4 to 6 is
        usual); they then take the place of chosen and rejected. 0: train on chosen and rejected.
    constraints: checks as texts, e.g. ("length_between(5, 60)", "regex('[A-Z].*')"), or a
        ConstraintSet. Without any, rows carry `chosen_csr` and `rejected_csr`, or chosen counts 1
        and rejected 0. A row's `constraint_group` names the group of group constraints.
    max_new_tokens: of the sampling, whole, in [1, inf). temperature: in (0, inf).
    """

    margin: float = 0.0
    ft_weight: float = 1.0
    length_power: float = 1.0
    skip_ties: bool = False
    samples: int = 0
    constraints: ConstraintSet | tuple[str, ...] = ()
    max_new_tokens: int = 128
    temperature: float = 1.0

    needs: ClassVar[tuple[str, ...]] = ("policy.logprob", "row.csr")
    unit: ClassVar[Unit] = "pair"

    def __post_init__(self) -> None:
        within(self, "[0, inf)", "margin", "ft_weight", "length_power")
        within(self, "[0, inf)", "samples", integer=True)
        within(self, "[1, inf)", "max_new_tokens", integer=True)
        within(self, "(0, inf)", "temperature")
        if self.samples and (self.samples < 2 or not self.constraints):
            raise InputError(
                f"samples={self.samples}: ranking needs at least 2 sampled responses, and "
                "constraints that rate them"
            )

    @property
    def completions(self) -> tuple[str, ...]:
        sampled = tuple(f"sample_{number}" for number in range(self.samples))
        return sampled or PAIR

    def precompute(self, rows: list[dict[str, Any]], context: Any) -> list[dict[str, Any]]:
        """Adds the samples and `{side}_csr`: those of the constraints, where there are any."""
        rows = [dict(row) for row in rows]
        tokenizer = context.tokenizer
        if self.samples:
            drawn = sample_completions(
                context.model,
                tokenizer,
                [row["prompt_ids"] for row in rows],
                self.samples,
                max_new_tokens=self.max_new_tokens,
                temperature=self.temperature,
                seed=context.seed,
            )
            for row, answers in zip(rows, drawn, strict=True):
                for side, ids in zip(self.completions, answers, strict=True):
                    row[f"{side}_ids"] = ids
                    row.pop(f"{side}_target", None)
                    row[side] = tokenizer.decode(ids, skip_special_tokens=True)
        for side, default in zip(self.completions, (1.0, 0.0, *[0.0] * self.samples), strict=False):
            rates = [default] * len(rows)
            if self.constraints:
                groups = [row.get("constraint_group", f"row {n}") for n, row in enumerate(rows)]
                rates = self._checks().csr(
                    [row["prompt"] for row in rows], [row[side] for row in rows], groups
                )
            for row, rate in zip(rows, rates, strict=True):
                if self.constraints:
                    row[f"{side}_csr"] = rate  # of this text: a rate that came along is of another
                else:
                    row.setdefault(f"{side}_csr", rate)
        return rows

    def __call__(
        self, batch: TokenBatch, policy: Scores, reference: Scores | None = None, **_: object
    ) -> Loss:
        if batch.group is None:
            raise ShapeError("ranking needs `group`, the number of each row's prompt")
        length = batch.target.sum(-1).clamp_min(1) ** self.length_power
        scores = sequence_sum(policy.need("logprob"), batch) / length
        csr = full_precision(batch.column("csr"))
        losses = rank_loss(
            scores,
            csr,
            batch.group,
            margin=self.margin,
            ft_weight=self.ft_weight,
            skip_ties=self.skip_ties,
        )
        better = csr[None, :] > csr[:, None]
        pairs = (batch.group[None, :] == batch.group[:, None]) & better  # [i, j]: j is better
        right = pairs & (scores[None, :] > scores[:, None]).detach()
        metrics = {
            "loss": losses.detach(),
            "csr": csr.mean().detach(),
            "rank/pairs": pairs.sum() / len(losses),
            "rewards/accuracy": right.sum() / pairs.sum().clamp_min(1),
        }
        return Loss(losses.mean(), metrics, {"rewards/accuracy": pairs.sum()})

    def _checks(self) -> ConstraintSet:
        if isinstance(self.constraints, ConstraintSet):
            return self.constraints
        return ConstraintSet.parse(self.constraints)


def _best(scores: Tensor, csr: Tensor, members: Tensor) -> Tensor:
    """Index of the response with the highest rate; among equals the one with the highest score."""
    top = members & (csr == csr[members].max())
    return scores.detach().masked_fill(~top, -torch.inf).argmax()
