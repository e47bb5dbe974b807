"""Statements of the head and of the tail, and how a language model judges them.

Statements come from LINK's search over rules with a program as critic, or from asking a model
outright for known and for little-known places with the same time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenry.decode.rollouts import rollouts
from tokenry.measure.answering import LanguageModel
from tokenry.measure.likelihood import LikelihoodScorer
from tokenry.model.hub import Loaded
from tokenry.tasks.link import Direction, KnowledgeBeamSearch, ThresholdCritic
from tokenry.tasks.rules import Rule
from tokenry.tasks.task import Loglikelihood
from tokenry.tasks.worlds.exact_rules import SAME, exact_truth, knowing_proposer, places, values_of

ASKED = {
    "head": "Two famous places with the same time of day are",
    "tail": "Two little-known places with the same time of day, of which few have heard, are",
}
TEMPLATES = (
    ("Question: Is it true that {}?\nAnswer:", True),
    ("Claim: {}\nThe claim is false. Yes or no?\nAnswer:", False),
)
"""A question about a statement, and whether "yes" means that it is true."""


@dataclass(frozen=True)
class LongTail:
    """loaded: the model that ranks, writes and judges. seed: of the values that are offered. beam,
    later, subjects: of the search, and of what is offered after a subject and for it."""

    loaded: Loaded
    seed: int = 0
    beam: int = 20
    later: int = 8
    subjects: int = 60

    def searched(self, rule: Rule, direction: Direction) -> list[dict[str, str]]:
        """Assignments at one end of the distribution."""
        return KnowledgeBeamSearch(
            knowing_proposer(self.seed, self.later),
            ThresholdCritic(exact_truth),
            LikelihoodScorer(*self.loaded),
            direction,
            beam=self.beam,
            calls=1,
            values=self.subjects,
        ).run(rule)

    def asked(self, direction: Direction, count: int) -> tuple[list[str], list[bool]]:
        """What the model says when it is asked for such places outright: statements, and whether
        they are true of places that the table has."""
        tokenizer: Any = self.loaded.tokenizer
        prompt = tokenizer(f"{ASKED[direction]} the city of")["input_ids"]
        ((*completions,),) = rollouts(
            self.loaded.model, [prompt], count, max_new_tokens=12, seed=self.seed
        )
        statements, true = [], []
        for ids in completions:
            first, joined, rest = tokenizer.decode(ids).partition(" and ")
            names = [first.split(",")[0].strip(), rest.strip().removeprefix("the city of ")]
            names[1] = names[1].partition(".")[0].partition(",")[0].strip()
            if not joined or not all(names):
                continue
            values = dict(zip("XZ", names, strict=True))
            known = all(name in places() for name in names) and names[0] != names[1]
            statements.append(SAME.text(values))
            true.append(known and bool(exact_truth(SAME, values)))
        return statements, true

    def judged(self, statements: Sequence[str], true: Sequence[bool]) -> Tensor:
        """Which statements the model judges right in each of the templates, [N, 2] bool.

        Its log-odds of yes and no are taken from their median over all statements: a model that
        says yes to everything is right as often as one that says no.
        """
        judge, columns = LanguageModel(*self.loaded), []
        for template, affirms in TEMPLATES:
            requests = [
                Loglikelihood(template.format(text.rstrip(".")), (" Yes", " No"))
                for text in statements
            ]
            odds = torch.tensor([yes - no for yes, no in judge.loglikelihood(requests)])
            says = odds > odds.median()
            columns.append(says == (torch.tensor(true) == affirms))
        return torch.stack(columns, 1)


def with_false_ones(rule: Rule, found: Sequence[dict[str, str]]) -> list[tuple[str, bool]]:
    """The conclusions of assignments, each followed by one of the other truth, whose last value is
    that of a later assignment, or any of its type where no other one will do."""
    made, last = [], rule.conclusion.args[-1]
    for number, values in enumerate(found):
        holds = bool(exact_truth(rule.conclusion, values))
        own = [other[last] for other in (*found[number + 1 :], *found[:number])]
        changed = next(
            {**values, last: value}
            for value in (*own, *values_of(rule.types[last]))
            if bool(exact_truth(rule.conclusion, {**values, last: value})) != holds
        )
        made.append((rule.conclusion.text(values), holds))
        made.append((rule.conclusion.text(changed), not holds))
    return made
