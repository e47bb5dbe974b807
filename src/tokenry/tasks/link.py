"""LINK: true and improbable statements, by filling a rule's variables one at a time.

For the next variable v of the rule, and every partial assignment a of the beam:

    propose    up to 4 x 50 values of v, from the predicates of v and bound variables alone
    verify     keep x with P(x) = min over type and predicates of P(true) >= threshold; the
               threshold starts at 0.85 and falls by 0.05, to 0.65 at the least, while fewer than
               `needed` values pass
    rerank     of all (a, x), the 75 %, at most 200, with the lowest likelihood of the bound
               premises in words (direction "tail"), or the highest ("head")

Then, over the values of an independent language model's mean log p per token,

    delta = mean over head - mean over tail                                    separated: > 0.3

and a question is solved only if it is answered right in every template (`template_accuracy`).
Proposer, critic and scorer are functions: tables, programs, or language models.

Source: In Search of the Long-Tail: Systematic Generation of Long-Tail Knowledge via Logical Rule
Guided Search (arXiv 2311.07237). Reconstructed: `needed`, the minimum over predicates, and that no
two variables have one value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal, get_args

from torch import Tensor

from tokenry.core.checks import one_of, within
from tokenry.core.errors import InputError, ShapeError
from tokenry.tasks.rules import Assignment, Predicate, Rule

Direction = Literal["tail", "head"]
SEPARATED = 0.3
"""The delta from which head and tail count as separated."""

Proposer = Callable[[Sequence[Predicate], str, Assignment, int], Sequence[str]]
"""(predicates, variable, bound values, number of the call) -> values of the variable."""
Truth = Callable[[Predicate, Assignment], float]
"""(predicate, values) -> P(it is true)."""
Scorer = Callable[[Sequence[str]], Sequence[float]]
"""Texts -> their mean log p per token, nats."""


@dataclass(frozen=True)
class ThresholdCritic:
    """Keeps what is likely enough to be true, and is less strict where too little is.

    Args:
        probability: of a predicate's truth.
        start: of the threshold, in [0, 1]; 0.85, 0.05 and 0.65.
        step: see `start`, in [0, 1].
        floor: see `start`, in [0, 1].
        needed: values that should pass before the threshold stops falling, in [0, inf).
    """

    probability: Truth
    start: float = 0.85
    step: float = 0.05
    floor: float = 0.65
    needed: int = 3

    def __post_init__(self) -> None:
        within(self, "[0, 1]", "start", "floor")
        within(self, "(0, 1]", "step")
        within(self, "[0, inf)", "needed", integer=True)
        if self.floor > self.start:
            raise InputError(f"the floor {self.floor} is above the start {self.start}")

    def threshold(self, probabilities: Sequence[float]) -> float:
        """Where it stops falling for values of these probabilities."""
        # in whole steps, so that 0.85 - 3 * 0.05 is 0.70 and not a little more
        steps = math.floor((self.start - self.floor) / self.step + 1e-9)
        levels = [round(self.start - number * self.step, 10) for number in range(steps + 1)]
        return next(
            (x for x in levels if sum(p >= x for p in probabilities) >= self.needed), levels[-1]
        )

    def passing(
        self, predicates: Sequence[Predicate], variable: str, bound: Assignment, values: list[str]
    ) -> list[str]:
        """Those of the values that are kept, in their order."""
        truths = [
            min(self.probability(p, {**bound, variable: value}) for p in predicates)
            for value in values
        ]
        threshold = self.threshold(truths)
        return [value for value, p in zip(values, truths, strict=True) if p >= threshold]


@dataclass(frozen=True)
class KnowledgeBeamSearch:
    """The search; see the module.

    Args:
        proposer: see there.
        critic: see `proposer`.
        scorer: see `proposer`.
        direction: "tail" keeps the least likely, "head" the likeliest.
        keep: share of partial assignments that is kept, rounded up, in (0, 1].
        beam: partial assignments at most, in [1, inf).
        calls: of the proposer for each partial assignment, in [1, inf).
        values: that count of each call, in [1, inf).
    """

    proposer: Proposer
    critic: ThresholdCritic
    scorer: Scorer
    direction: Direction = "tail"
    keep: float = 0.75
    beam: int = 200
    calls: int = 4
    values: int = 50

    def __post_init__(self) -> None:
        one_of("KnowledgeBeamSearch.direction", self.direction, get_args(Direction))
        within(self, "(0, 1]", "keep")
        within(self, "[1, inf)", "beam", "calls", "values", integer=True)

    def run(self, rule: Rule) -> list[dict[str, str]]:
        """Whole assignments, the most extreme first; none where a variable has no value."""
        partial: list[dict[str, str]] = [{}]
        for variable in rule.order:
            grown = []
            for bound in partial:
                predicates = rule.about(variable, bound)
                offered = dict.fromkeys(
                    value
                    for call in range(self.calls)
                    for value in self.proposer(predicates, variable, bound, call)[: self.values]
                )
                fresh = [value for value in offered if value not in bound.values()]
                kept = self.critic.passing(predicates, variable, bound, fresh)
                grown += [{**bound, variable: value} for value in kept]
            partial = self._reranked(rule, grown)
        return partial

    def _reranked(self, rule: Rule, grown: list[dict[str, str]]) -> list[dict[str, str]]:
        scores = self.scorer([rule.text(values) for values in grown]) if grown else []
        sign = 1 if self.direction == "tail" else -1
        order = sorted(range(len(grown)), key=lambda n: sign * scores[n])
        count = min(self.beam, math.ceil(self.keep * len(grown) - 1e-9))
        return [grown[number] for number in order[:count]]


def separation(head: Sequence[float], tail: Sequence[float]) -> float:
    """delta, nats a token, from log-likelihoods of both. InputError where one is empty."""
    if not head or not tail:
        raise InputError(f"{len(head)} statements of the head and {len(tail)} of the tail")
    return fmean(head) - fmean(tail)


def template_accuracy(correct: Tensor, strict: bool = True) -> float:
    """Share of items that are solved, from which templates were answered right, [items, templates]
    bool: in all of them or, not strict, the mean."""
    if correct.ndim != 2 or not correct.numel():
        raise ShapeError(f"correct must be [items, templates], got {[*correct.shape]}")
    right = correct.all(-1) if strict else correct
    return float(right.double().mean())
