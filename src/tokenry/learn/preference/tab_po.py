"""TAB-PO: token-weighted, length-normalised DPO with a barrier under the chosen tokens.

    w~_t = w_t n / sum_t w_t                            weights of a completion, with mean 1
    S(y) = 1/n sum_t w~_t log pi(y_t|s_t) / pi_ref(y_t|s_t)
    g_t  = 1 if log pi(y_t|s_t) < log tau, else 0       of the chosen completion, no gradient
    loss = -log sigmoid( beta [ S(y_w) - S(y_l) ] )
           + lambda sum_t w~_t g_t (-log pi(y_t|s_t)) / max( sum_t w~_t g_t, 1 )

y_w is the chosen and y_l the rejected completion, n its number of tokens, pi the policy, pi_ref the
frozen reference, tau a probability. Made for structured answers (JSON, annotations) that differ in
a few tokens: the weights w_t favour tokens of important fields and tokens in which the two answers
differ; the barrier, likelihood training of the chosen tokens that are still improbable, keeps the
chosen answer from sinking along with the rejected one. S is a mean: the same beta pulls n times
less than DPO's.

Source: Preference Optimization with a Token-Level Adaptive Barrier for Token-Critical Structured
Generation (arXiv 2603.00025).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenry.core.aggregate import full_precision, masked_sum
from tokenry.core.batch import TokenBatch
from tokenry.core.checks import in_range, within
from tokenry.core.scores import Scores
from tokenry.learn.objective import PAIR, Loss, Objective, Unit, objective
from tokenry.learn.preference.pairs import halves
from tokenry.learn.preference.weighted import add_terms, preference_loss
from tokenry.text.spans import Offsets, find_spans, token_labels

FIELD_WEIGHT = {"Code": 1.1, "Sub-code": 1.2, "Span": 1.1}


@dataclass(frozen=True)
class FieldWeight:
    """w~_t of every token, [2B, T], from the column `weight`, which `precompute` makes.

    field_weight, difference: as in `TABPO`, in [0, inf). A completion whose weights are all 0 keeps
    them.
    """

    field_weight: Mapping[str, float] = field(default_factory=lambda: dict(FIELD_WEIGHT))
    difference: float = 1.2

    needs: ClassVar[tuple[str, ...]] = ("token.weight",)

    def __post_init__(self) -> None:
        within(self, "[0, inf)", "difference")
        for name, weight in self.field_weight.items():
            in_range(f"the weight of the field {name!r}", weight, "[0, inf)")

    def precompute(self, rows: list[dict[str, Any]], context: Any) -> list[dict[str, Any]]:
        """Adds `chosen_weight` and `rejected_weight` where the data have none."""
        for row in rows:
            both = [row[f"{side}_ids"] for side in PAIR]
            for side, ids, other in zip(PAIR, both, reversed(both), strict=True):
                if row.get(f"{side}_weight") is not None:
                    continue
                values = row.get(f"{side}_fields") or row.get("fields") or {}
                offsets = context.offsets(row, side)
                weights = field_weights(row[side], offsets, values, self.field_weight)
                factors = difference_weights(ids, other, self.difference)
                row[f"{side}_weight"] = [a * b for a, b in zip(weights, factors, strict=True)]
        return rows

    def __call__(
        self, batch: TokenBatch, policy: Scores, reference: Scores | None, **_: object
    ) -> Tensor:
        weight = torch.where(batch.target, full_precision(batch.column("weight")), 0.0)
        mean = weight.sum(-1, keepdim=True) / batch.target.sum(-1, keepdim=True).clamp_min(1)
        return weight / mean.masked_fill(mean == 0, 1.0)


@dataclass(frozen=True)
class BarrierTerm:
    """Likelihood of the chosen tokens that are less probable than tau, for each pair, [B].

    tau: in (0, 1]. strength: lambda, in [0, inf). weight: a token weight such as `FieldWeight`, or
        None for 1 everywhere.
    """

    tau: float = 0.66
    strength: float = 0.5
    weight: Any = None

    def __post_init__(self) -> None:
        within(self, "(0, 1]", "tau")
        within(self, "[0, inf)", "strength")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("policy.logprob", *(() if self.weight is None else self.weight.needs))

    def __call__(
        self, batch: TokenBatch, policy: Scores, reference: Scores | None, **others: Any
    ) -> Tensor:
        logprob = full_precision(policy.need("logprob"))
        weight = (
            torch.ones_like(logprob)
            if self.weight is None
            else self.weight(batch, policy, reference, **others)
        )
        active = halves(batch.target & (logprob.detach() < math.log(self.tau)))[0]
        chosen, share = halves(logprob)[0], halves(weight)[0]
        mass = masked_sum(share, active, dim=-1).clamp_min(1.0)  # a barely active gate stays small
        return -self.strength * masked_sum(chosen, active, dim=-1, weights=share) / mass


@objective("tab-po", paper=123)
@dataclass(frozen=True)
class TABPO(Objective):
    """Token-level Adaptive Barrier Preference Optimization.

    A data row may name the texts of its fields, {"Code": ["A12"], "Span": ["chest pain"]}, in the
    column "fields", or apart for each side in "chosen_fields" and "rejected_fields". Or it brings
    its own weights, one per token, in "chosen_weight" and "rejected_weight".

    beta: strength of the pull towards the reference, in (0, inf), on means over tokens; default
        0.5.
    tau: probability below which a chosen token is held up, in (0, 1]; default 0.66.
    barrier: lambda, strength of that, in [0, inf); default 0.5.
    field_weight: weight of a field's tokens, in [0, inf) (the greatest, where fields overlap);
        others have 1.
    difference: factor for tokens in which the two completions differ, compared place by place up
        to the end of the shorter one, in [0, inf); default 1.2, 1 for none.
    """

    beta: float = 0.5
    tau: float = 0.66
    barrier: float = 0.5
    field_weight: Mapping[str, float] = field(default_factory=lambda: dict(FIELD_WEIGHT))
    difference: float = 1.2

    needs: ClassVar[tuple[str, ...]] = ("policy.logprob", "reference.logprob", "token.weight")
    unit: ClassVar[Unit] = "pair"

    def __post_init__(self) -> None:
        within(self, "(0, inf)", "beta")
        within(self, "(0, 1]", "tau")
        within(self, "[0, inf)", "barrier")
        _ = self._weight  # which checks its own

    def precompute(self, rows: list[dict[str, Any]], context: Any) -> list[dict[str, Any]]:
        """Adds `chosen_weight` and `rejected_weight` where the data have none."""
        return self._weight.precompute(rows, context)

    def __call__(
        self, batch: TokenBatch, policy: Scores, reference: Scores | None, **_: object
    ) -> Loss:
        barrier = BarrierTerm(self.tau, self.barrier, self._weight)
        result = preference_loss(
            batch,
            policy,
            reference,
            beta=self.beta,
            weight=self._weight(batch, policy, reference),
            reduction="mean",
        )
        return add_terms(result, barrier=barrier(batch, policy, reference))

    @property
    def _weight(self) -> FieldWeight:
        return FieldWeight(self.field_weight, self.difference)


def field_weights(
    text: str,
    offsets: Offsets,
    values: Mapping[str, Sequence[str]],
    field_weight: Mapping[str, float],
) -> list[float]:
    """The weight of each token: the greatest of the fields in whose values it has a share, or 1.

    text: a completion; offsets: its tokens' characters. values: field -> its texts, of which every
    occurrence counts. Fields without a weight count 1.
    """
    spans = [
        (start, end, field_weight[name])
        for name, texts in values.items()
        if name in field_weight
        for start, end, _ in find_spans(text, [value for value in texts if value])
    ]
    return token_labels(offsets, spans, 1.0, rule="max")


def difference_weights(
    ids: Sequence[int], other: Sequence[int], factor: float = 1.2
) -> list[float]:
    """`factor` for each token where the other completion has another at the same place, else 1.

    Beyond the end of the other completion there is nothing to differ from: 1, as released.
    """
    compared = [1.0 if own == its else factor for own, its in zip(ids, other, strict=False)]
    return compared + [1.0] * (len(ids) - len(compared))
