"""Preference report: what a policy says about held-out pairs, pair by pair and token by token."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tokenry.core.batch import TokenBatch
from tokenry.learn.data import PreferenceCollator, as_dataset, batch_of, preference_rows
from tokenry.learn.limits import Limits, fitting
from tokenry.learn.objective import PAIR
from tokenry.learn.reference import Reference, evaluating
from tokenry.model.score import score


@dataclass(frozen=True)
class Completion:
    """One completion under a policy: its tokens and, for each, nats.

    tokens: texts. logprob: log pi(token). log_ratio: log pi / pi_ref of the token.
    kl: KL(pi_ref || pi) over the whole vocabulary where the token was predicted.
    """

    tokens: list[str]
    logprob: list[float]
    log_ratio: list[float]
    kl: list[float]


@dataclass(frozen=True)
class PairReport:
    """One pair. preference: mean token logprob of chosen minus rejected, under the policy alone.

    margin: beta * (log-ratio of chosen minus that of rejected, summed): the implicit reward margin,
    0 when the policy is the reference.
    """

    prompt: str
    chosen: Completion
    rejected: Completion
    preference: float
    margin: float


@dataclass(frozen=True)
class PreferenceReport:
    """All pairs and their summary.

    accuracy: share of pairs with a positive implicit reward margin (0 at the reference itself).
    preference_accuracy: share whose chosen completion has the higher mean token logprob.
    margin, preference: means over pairs. kl, kl_chosen, kl_rejected: mean per completion token.
    skipped: rows that could not be used; first_skipped: why the first of them could not.
    """

    pairs: list[PairReport]
    accuracy: float
    preference_accuracy: float
    margin: float
    preference: float
    kl: float
    kl_chosen: float
    kl_rejected: float
    skipped: int = 0
    first_skipped: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def preference_report(
    model: Any,
    tokenizer: Any,
    pairs: Any,
    reference: Reference,
    *,
    beta: float = 0.1,
    batch_size: int = 4,
    **data: Any,
) -> PreferenceReport:
    """Score `pairs` (a JSONL file or rows, as in `learn.data`) under a policy and its reference.

    beta: the objective's, so that margins are in its unit of reward. data: how the pairs are read,
    as for `preference_rows` (max_length, truncate, as_chat, bad_rows); a run's record has its own.

    Raises InputError naming the first row that cannot be read or is longer than the model can take,
    unless bad_rows="skip".
    """
    read, skipped = preference_rows(pairs, tokenizer, **data)
    read, skipped = fitting(
        read, Limits.of(model), PAIR, skipped, bad_rows=data.get("bad_rows", "error")
    )
    rows = list(as_dataset(read))
    collate, reports = PreferenceCollator.of(tokenizer), []
    device = next(model.parameters()).device
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        batch = batch_of(collate(part)).to(device)
        frozen = reference(batch, ("logprob", "hidden"))
        with evaluating(model):
            policy = score(model, batch, needs=("logprob", "divergence"), reference=frozen)
        values = torch.stack(
            [
                policy.need("logprob"),
                policy.need("logprob") - frozen.need("logprob"),
                policy.need("divergence"),
            ]
        ).cpu()  # [3, 2B, T]
        batch = batch.to("cpu")
        shown = [_completion(tokenizer, batch, values, row) for row in range(len(batch.ids))]
        for number, row in enumerate(part):
            reports.append(
                _pair(row["prompt"], shown[number], shown[number + len(part)], beta=beta)
            )
    return replace(_summary(reports), skipped=skipped.count, first_skipped=skipped.first)


def _completion(tokenizer: Any, batch: TokenBatch, values: Tensor, row: int) -> Completion:
    where = batch.target[row]
    tokens = [tokenizer.decode([token]) for token in batch.ids[row, where].tolist()]
    logprob, log_ratio, kl = values[:, row, where].tolist()
    return Completion(tokens, logprob, log_ratio, kl)


def _pair(prompt: str, chosen: Completion, rejected: Completion, *, beta: float) -> PairReport:
    return PairReport(
        prompt,
        chosen,
        rejected,
        preference=_mean(chosen.logprob) - _mean(rejected.logprob),
        margin=beta * (sum(chosen.log_ratio) - sum(rejected.log_ratio)),
    )


def _summary(pairs: list[PairReport]) -> PreferenceReport:
    chosen = [value for pair in pairs for value in pair.chosen.kl]
    rejected = [value for pair in pairs for value in pair.rejected.kl]
    return PreferenceReport(
        pairs,
        accuracy=_mean([float(pair.margin > 0) for pair in pairs]),
        preference_accuracy=_mean([float(pair.preference > 0) for pair in pairs]),
        margin=_mean([pair.margin for pair in pairs]),
        preference=_mean([pair.preference for pair in pairs]),
        kl=_mean(chosen + rejected),
        kl_chosen=_mean(chosen),
        kl_rejected=_mean(rejected),
    )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
