"""Dictionary constraints in translations: how often they are met, and how well they are told apart.

For each phrase of a source that a dictionary has, with candidates K:

    gt    some candidate of K occurs in the reference
    pred  some candidate of K occurs in the reference and in the prediction

    copy success rate         CSR = Σ pred / Σ gt
    accuracy at degree k      pred_k / gt_k over the phrases with |K| = k candidates
    polysemy score            Σ_k log2(k + 1) (pred_k / gt_k) / Σ_k k over the degrees that occur

The last one is the released script's; it is no weighted mean (a perfect result is below 1).

Source: DICTDIS: Dictionary Constrained Disambiguation for Improved NMT (arXiv 2210.06996).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenry.core.errors import InputError
from tokenry.text.word_boundaries import marked


@dataclass(frozen=True)
class CopyMetrics:
    """With none of them, rates are NaN.

    Attributes:
        csr: the copy success rate.
        by_degree: accuracy for each number of candidates.
        polysemy: the polysemy score.
        phrases: how many count, Σ gt.
    """

    csr: float
    by_degree: dict[int, float]
    polysemy: float
    phrases: int


def constraint_copy_metrics(
    matches: Sequence[Sequence[Sequence[Any]]],
    predictions: Sequence[Any],
    references: Sequence[Any],
) -> CopyMetrics:
    """Of each sentence: its phrases, each the list of its candidates; a prediction; a reference.

    All are texts, compared as whole words whatever their case, or all are lists of tokens.
    """
    if not len(matches) == len(predictions) == len(references):
        raise InputError(
            f"{len(matches)} sources, {len(predictions)} predictions and {len(references)} "
            "references: one of each for every sentence is needed"
        )
    wanted, met = Counter(), Counter()
    for phrases, prediction, reference in zip(matches, predictions, references, strict=True):
        for candidates in phrases:
            right = [one for one in candidates if occurs(one, reference)]
            wanted[len(candidates)] += bool(right)
            met[len(candidates)] += any(occurs(one, prediction) for one in right)
    by_degree = {k: met[k] / wanted[k] for k in sorted(wanted) if wanted[k]}
    total = sum(wanted.values())
    score = sum(math.log2(k + 1) * rate for k, rate in by_degree.items())
    return CopyMetrics(
        csr=sum(met.values()) / total if total else math.nan,
        by_degree=by_degree,
        polysemy=score / sum(by_degree) if by_degree else math.nan,
        phrases=total,
    )


def occurs(phrase: Any, text: Any) -> bool:
    """Whether a phrase stands in a text, as whole words; or in a list of tokens, side by side."""
    if isinstance(text, str):
        return marked(phrase) in marked(text)
    size, tokens = len(phrase), list(text)
    return any(tokens[i : i + size] == list(phrase) for i in range(len(tokens) - size + 1))
