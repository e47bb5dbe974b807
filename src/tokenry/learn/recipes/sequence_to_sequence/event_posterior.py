"""Event posterior regularisation: annotated event triggers as soft constraints on answers.

The posterior q(y) ∝ p(y | x) exp(-u φ(x, y)) is to avoid events that do not answer the question.

Generative: weighted unlikelihood of what greedy decoding would emit. With A the trigger tokens of
answer events and Ā those of others,

    weight[v] ∝ 1,  times w_answer for each time v is in A, times w_nonanswer for each time in Ā
    L = - Σ_{n,t} weight[n, v] log(1 - p[n, t, v])   at   v = argmax p[n, t]

added as CE + 0.1 L / N for N samples; no gradient flows through the choice of v. (With
`selective=False` all v are summed over.)

The extractive form is a head, `model.heads.event_posterior`.

Source: Event Knowledge Incorporation with Posterior Regularization for Event-Centric Question
Answering (arXiv 2305.04522).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tokenry.core.checks import in_range, within
from tokenry.core.errors import InputError, ShapeError

SMALLEST = 1e-8  # stands for 1 - p where it is 0


def event_unlikelihood(
    logits: Tensor, mask: Tensor, token_weights: Tensor, *, selective: bool = True
) -> Tensor:
    """L, a scalar sum.

    Args:
        logits: [N, T, V].
        mask: bool [N, T], the positions that count.
        token_weights: [N, V].
        selective: penalise only the most probable token of each position.
    """
    N, T, V = logits.shape
    if mask.shape != (N, T) or token_weights.shape != (N, V):
        raise ShapeError(
            f"logits [{N}, {T}, {V}] need a mask [{N}, {T}] and weights [{N}, {V}], not "
            f"{list(mask.shape)} and {list(token_weights.shape)}"
        )
    logprob = logits.float().log_softmax(-1)
    weight = token_weights.float()[:, None].expand_as(logprob)
    if selective:
        emitted = logprob.detach().argmax(-1, keepdim=True)
        logprob, weight = logprob.gather(-1, emitted), weight.gather(-1, emitted)
    penalty = -(weight * (-torch.expm1(logprob)).clamp_min(SMALLEST).log()).sum(-1)
    return torch.where(mask.bool(), penalty, 0.0).sum()


def event_token_weights(
    vocab_size: int,
    answer_ids: Sequence[int],
    nonanswer_ids: Sequence[int],
    *,
    w_answer: float = 0.5,
    w_nonanswer: float = 1.5,
) -> Tensor:
    """float32 [V]: weights of the vocabulary for one sample; they add up to 1 for distinct ids.

    Args:
        answer_ids: the first token of each trigger; one given twice counts twice.
        nonanswer_ids: the first token of each trigger; one given twice counts twice.
    """
    ids = torch.tensor([*answer_ids, *nonanswer_ids], dtype=torch.long)
    if len(ids) and not (int(ids.min()) >= 0 and int(ids.max()) < vocab_size):
        raise InputError(f"trigger ids must be in 0..{vocab_size - 1}, not {ids.tolist()}")
    in_range("w_answer", w_answer, "(0, inf)")
    in_range("w_nonanswer", w_nonanswer, "(0, inf)")
    factors = [w_answer] * len(answer_ids) + [w_nonanswer] * len(nonanswer_ids)
    total = vocab_size + sum(factor - 1 for factor in factors)
    if total <= 0:
        raise InputError(
            f"w_answer {w_answer} and w_nonanswer {w_nonanswer} must leave weight to the "
            f"{vocab_size} tokens"
        )
    logs = torch.zeros(vocab_size).index_add(0, ids, torch.tensor(factors).log())
    return logs.exp() / total


@dataclass(frozen=True)
class EventLikelihood:
    """Cross-entropy of the target tokens (their mean) + weight · event unlikelihood / N.

    Args:
        weight: in [0, inf); default 0.1, the paper's.
        selective: penalise only the most probable token.
    """

    weight: float = 0.1
    selective: bool = True

    def __post_init__(self) -> None:
        within(self, "[0, inf)", "weight")

    def __call__(
        self, logits: Tensor, target: Tensor, mask: Tensor, token_weights: Tensor
    ) -> Tensor:
        """logits [N, T, V], target ids [N, T], mask bool [N, T], token_weights [N, V]."""
        mask = mask.bool()
        likelihood = F.cross_entropy(logits[mask].float(), target[mask])
        penalty = event_unlikelihood(logits, mask, token_weights, selective=self.selective)
        return likelihood + self.weight * penalty / len(logits)
