"""Adaptive unlearning: suppress hallucinated names, token by token, and keep the rest in place.

    loss = retain * mean_{mask=1} [ -log pi(y_t|s_t) ]
         + forget * mean_{mask=2} [ -log(1 - pi(y_t|s_t)) ]
         + keep   * mean_{mask=0} KL( pi_ref(.|s_t) || pi(.|s_t) )            for each prompt

pi is the policy, pi_ref the frozen reference; the mask of a completion token is 1 on names that
exist, 2 on names that do not, 0 elsewhere (`text.names.tri_mask`). The unlikelihood in the second
term is bounded where it is done: its slope p / (1 - p) per log-probability vanishes with p, while
gradient ascent (+log pi) pushes for ever. Two baselines for that term:

    ascent    log pi(y_t|s_t)
    npo       -2/b log sigmoid( -b log pi(y_t|s_t) / pi_ref(y_t|s_t) )

and `discover`, the loop that keeps finding prompts on which the current model hallucinates.

Source: LLM Ghostbusters: Surgical Hallucination Suppression via Adaptive Unlearning (arXiv
2605.01047). Reconstructed: the three terms and their weights, the loop's mutation and stopping.
Means are within a prompt's rows, so that gradient accumulation is exact; a term without tokens is
0. Where pi(y_t) > 1 - 1e-6 the unlikelihood goes on as its tangent, with finite slope.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from tokenry.core.aggregate import full_precision
from tokenry.core.batch import TokenBatch
from tokenry.core.checks import within
from tokenry.core.divergences import FORWARD_KL
from tokenry.core.errors import InputError, ShapeError, UnknownNameError
from tokenry.core.f_divergence import FDivergence
from tokenry.core.scores import Scores
from tokenry.learn.objective import PAIR, Example, Loss, Objective, Unit, objective
from tokenry.text.names import (
    FORGET,
    IGNORE,
    RETAIN,
    NameRegistry,
    NameSpan,
    hallucination_rate,
)
from tokenry.text.spans import find_spans, token_labels

ForgetLoss = Literal["unlikelihood", "ascent", "npo"]
FORGET_LOSSES = ("unlikelihood", "ascent", "npo")
LEAST = 1e-6  # of 1 - p


def unlikelihood(logprob: Tensor) -> Tensor:
    """-log(1 - p) from log p; beyond p = 1 - 1e-6 its tangent."""
    logprob = full_precision(logprob)
    border = math.log1p(-LEAST)
    # 1 - exp rounds away small p and log1p(-exp) p near 1: each on its own half.
    rare = -torch.log1p(-torch.exp(logprob.clamp_max(-math.log(2))))
    likely = -torch.log(-torch.expm1(logprob.clamp(-math.log(2), border)))
    value = torch.where(logprob < -math.log(2), rare, likely)
    beyond = (logprob - border).clamp_min(0)
    return value + beyond * (1 - LEAST) / LEAST


def forget_loss(
    logprob: Tensor,
    reference_logprob: Tensor,
    kind: ForgetLoss = "unlikelihood",
    npo_beta: float = 0.1,
) -> Tensor:
    """The second term of each token, from log pi and log pi_ref of any equal shape."""
    if kind == "unlikelihood":
        return unlikelihood(logprob)
    own = full_precision(logprob)
    if kind == "ascent":
        return own
    ratio = own - full_precision(reference_logprob)
    return -2 / npo_beta * logsigmoid(-npo_beta * ratio)


@objective(
    "adaptive-unlearning",
    paper=115,
    examples=lambda: [
        Example(
            AdaptiveUnlearning(),
            {"tri": lambda batch, values: (values * 2.99).floor() * batch.target},
        )
    ],
)
@dataclass(frozen=True)
class AdaptiveUnlearning(Objective):
    """Hybrid token objective on completions whose tokens are marked retain, forget or ignore.

    Of plain preference rows the mask is made from the fields `forget` and `retain` (lists of texts
    that stand in either completion as whole words: "re" is not in "here"), or from `chosen_tri` and
    `rejected_tri` (0, 1, 2 per token); without any of them the tokens in which the two completions
    differ are retained (chosen) and forgotten (rejected).

    retain, forget, keep: weights of the three terms, in [0, inf); 1, 0.5 and 0.1.
    kind: "unlikelihood", or the baselines "ascent" and "npo".
    npo_beta: b of the latter, in (0, inf); default 0.1.
    completions: those of a row that are trained on.
    """

    retain: float = 1.0
    forget: float = 0.5
    keep: float = 0.1
    kind: ForgetLoss = "unlikelihood"
    npo_beta: float = 0.1
    completions: tuple[str, ...] = PAIR

    needs: ClassVar[tuple[str, ...]] = (
        "policy.logprob",
        "policy.divergence",
        "reference.logprob",
        "token.tri",
    )
    unit: ClassVar[Unit] = "pair"
    divergence: ClassVar[FDivergence] = FORWARD_KL

    def __post_init__(self) -> None:
        if self.kind not in FORGET_LOSSES:
            raise UnknownNameError("forget loss", self.kind, FORGET_LOSSES)
        within(self, "[0, inf)", "retain", "forget", "keep")
        within(self, "(0, inf)", "npo_beta")

    def precompute(self, rows: list[dict[str, Any]], context: Any) -> list[dict[str, Any]]:
        """Adds `{side}_tri`, the mask of each completion token."""
        rows = [dict(row) for row in rows]
        for row in rows:
            named = row.get("forget") is not None or row.get("retain") is not None
            differing = {} if named else differences(row["chosen_ids"], row["rejected_ids"])
            for side in self.completions:
                if row.get(f"{side}_tri") is not None:
                    continue
                if named:
                    labels = _found(row, side, context.offsets(row, side))
                elif side in differing:
                    labels = differing[side]
                else:
                    raise InputError(
                        f'{row.get("place", "a row")}: for "{side}" give `forget`, `retain` or '
                        f"`{side}_tri`"
                    )
                row[f"{side}_tri"] = [float(label) for label in labels]
        return rows

    def __call__(
        self, batch: TokenBatch, policy: Scores, reference: Scores | None, **_: object
    ) -> Loss:
        if reference is None:
            raise InputError("unlearning needs the scores of a reference model to stay close to")
        if batch.group is None:
            raise ShapeError("unlearning needs `group`, the number of each row's prompt")
        numbers, place = batch.group.unique(return_inverse=True)
        logprob = full_precision(policy.need("logprob"))
        # Filled before anything is computed of it: garbage outside the target must not leak.
        logprob = torch.where(batch.target, logprob, -1.0)
        frozen = torch.where(batch.target, full_precision(reference.need("logprob")), -1.0)
        divergence = torch.where(batch.target, full_precision(policy.need("divergence")), 0.0)
        forgotten = forget_loss(logprob, frozen, self.kind, self.npo_beta)
        losses = logprob.new_zeros(len(numbers))
        metrics = {}
        for name, weight, label, values in (
            ("retain", self.retain, RETAIN, -logprob),
            ("forget", self.forget, FORGET, forgotten),
            ("keep", self.keep, IGNORE, divergence),
        ):
            mask = batch.target & (batch.column("tri").round() == label)
            sums = torch.where(mask, values, 0.0).sum(-1)
            term = torch.zeros_like(losses).index_add(0, place, sums)
            count = torch.zeros_like(losses).index_add(0, place, mask.sum(-1).to(losses))
            term = term / count.clamp_min(1)
            losses = losses + weight * term
            metrics[f"unlearn/{name}"] = term.detach()
            metrics[f"tokens/{name}"] = count
        return Loss(losses.mean(), {"loss": losses.detach(), **metrics})


def differences(chosen: Sequence[int], rejected: Sequence[int]) -> dict[str, list[int]]:
    """Masks of two completions: 1 and 2 on the tokens that an alignment does not pair, else 0."""
    labels = {"chosen": [RETAIN] * len(chosen), "rejected": [FORGET] * len(rejected)}
    matcher = SequenceMatcher(None, list(chosen), list(rejected), autojunk=False)
    for start, other, size in matcher.get_matching_blocks():
        labels["chosen"][start : start + size] = [IGNORE] * size
        labels["rejected"][other : other + size] = [IGNORE] * size
    return labels


def discover(
    respond: Callable[[list[str]], list[str]],
    prompts: Sequence[str],
    registry: NameRegistry,
    mutate: Callable[[list[str]], list[str]],
) -> tuple[list[tuple[str, str, list[NameSpan]]], list[str], float]:
    """One round of the loop: what the current model writes, checked, and the next prompts.

    respond: prompts -> the current model's texts. mutate: prompts on which it hallucinated -> new
    ones like them. Gives (prompt, text, names) of every text that names something, to train on
    (balanced by the mask's means); the mutated prompts; and the share of names that do not exist.
    """
    texts = respond(list(prompts))
    found = [
        (prompt, text, registry.occurrences(text))
        for prompt, text in zip(prompts, texts, strict=True)
    ]
    found = [example for example in found if example[2]]
    failing = [p for p, _, spans in found if any(not span.valid for span in spans)]
    rate, _ = hallucination_rate(texts, registry)
    return found, mutate(failing) if failing else [], rate


def _found(row: dict[str, Any], side: str, offsets: list[tuple[int, int]]) -> list[int]:
    """Labels of a completion's tokens from the texts to forget and to retain in it."""
    given = {name: row.get(name) or () for name in ("forget", "retain")}
    for name, texts in given.items():
        if isinstance(texts, str):
            raise InputError(f'{row.get("place", "a row")}: "{name}" must be a list, not one text')
    wrong, right = set(given["forget"]), set(given["retain"])
    spans = [
        (start, end, FORGET if text in wrong else RETAIN)
        for start, end, text in find_spans(row[side], wrong | right, whole_words=True)
    ]
    return token_labels(offsets, spans, IGNORE, rule="max")
