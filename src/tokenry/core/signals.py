"""Signals: one number per token from the distribution that predicted it.

Every signal takes logits [N, V] (N token positions, V vocabulary entries; any float dtype, computed
in float32 or better) and returns [N]. Those about the token that came take targets [N] as well;
those about the distribution alone accept and ignore it, so that all can be called alike; only
`divergence` takes a second model's logits in its place. With p = softmax(logits) and x the target:

    surprisal    -log p(x)                               nats
    entropy      H = -Σ_v p_v log p_v                    nats
    varentropy   Σ_v p_v (-log p_v - H)²                 nats²
    rank         number of tokens likelier than x        0 is the top token; ties share the rank
    margin       log p(first) - log p(second)            nats
    divergence   D_f(reference || p)                     nats for the KL-like ones

Work runs in pieces of rows whose temporaries fit into `memory` >= 1 bytes (at least a row), so a
vocabulary of 262k entries costs no more than its logits do. Tokens of probability 0 are harmless:
they add nothing, and as a target have infinite surprisal. Gradients flow (their graph is not
bounded by `memory`).
"""

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from tokenry.core.checks import in_range
from tokenry.core.divergence import divergence as logits_divergence
from tokenry.core.divergences import JENSEN_SHANNON
from tokenry.core.errors import InputError, ShapeError
from tokenry.core.f_divergence import FDivergence
from tokenry.core.registry import Role

MEMORY = 64 * 2**20
COPIES = 4  # float32 tensors of a piece's size that live at once, at most


class Signal(Protocol):
    """The role: one number per token from the logits that predicted it, s_t = f(l_t, x_t)."""

    def __call__(self, logits: Tensor, targets: Tensor, /, **options: Any) -> Tensor:
        """[N] from logits [N, V] and targets [N]."""
        ...


signal = Role("signal", Signal, ("tokenry.core.signals",))


@signal("surprisal")
def surprisal(logits: Tensor, targets: Tensor, *, memory: int = MEMORY) -> Tensor:
    """-log p(target), nats [N]."""

    def piece(rows: Tensor, ids: Tensor) -> Tensor:
        return rows.logsumexp(-1) - _at(rows, ids)

    return _by_rows(piece, logits, _checked(logits, targets), memory)


@signal("entropy")
def entropy(logits: Tensor, targets: Tensor | None = None, *, memory: int = MEMORY) -> Tensor:
    """-Σ p log p, nats [N], between 0 and log V."""
    return _by_rows(lambda rows, _: _moments(rows)[0], logits, None, memory)


@signal("varentropy")
def varentropy(logits: Tensor, targets: Tensor | None = None, *, memory: int = MEMORY) -> Tensor:
    """The variance of the surprisal under the model's own distribution, nats² [N].

    0 for a uniform choice among any number of tokens; large when a likely token has a long tail of
    unlikely rivals.
    """

    def piece(rows: Tensor, _: Tensor) -> Tensor:
        mean, logprob, probability = _moments(rows)
        return (probability * (logprob + mean[:, None]).square()).sum(-1)

    return _by_rows(piece, logits, None, memory)


@signal("rank")
def rank(logits: Tensor, targets: Tensor, *, memory: int = MEMORY) -> Tensor:
    """How many tokens are likelier than the target, long [N]; counted, nothing is sorted."""

    def piece(rows: Tensor, ids: Tensor) -> Tensor:
        return (rows > _at(rows, ids)[:, None]).sum(-1)

    return _by_rows(piece, logits, _checked(logits, targets), memory)


@signal("margin")
def margin(logits: Tensor, targets: Tensor | None = None, *, memory: int = MEMORY) -> Tensor:
    """log p of the likeliest token minus that of the second, nats [N]; 0 for a tie."""
    if logits.shape[-1] < 2:
        raise ShapeError(f"a margin needs two tokens to compare, got logits {list(logits.shape)}")

    def piece(rows: Tensor, _: Tensor) -> Tensor:
        best = rows.topk(2).values
        return best[:, 0] - best[:, 1]

    return _by_rows(piece, logits, None, memory)


@signal("divergence")
def divergence(
    logits: Tensor,
    reference_logits: Tensor,
    kind: FDivergence | str = JENSEN_SHANNON,
    *,
    memory: int = MEMORY,
) -> Tensor:
    """D(reference || this model) at every position, [N]; both over the same vocabulary."""
    if len(logits) != len(reference_logits):
        raise ShapeError(f"{len(logits)} positions cannot be compared with {len(reference_logits)}")

    def piece(rows: Tensor, reference: Tensor) -> Tensor:
        return logits_divergence(reference, rows, kind)

    return _by_rows(piece, logits, reference_logits, max(memory // 2, 1))


def bits(nats: Tensor) -> Tensor:
    """Nats as bits."""
    return nats / math.log(2)


def _moments(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Entropy [n], and the log-probabilities [n, V] (0 where -inf) with the probabilities."""
    logprob = rows.log_softmax(-1)
    probability = logprob.exp()
    logprob = logprob.masked_fill(logprob == float("-inf"), 0.0)  # 0 · -inf is 0 here
    return -(probability * logprob).sum(-1), logprob, probability


def _at(rows: Tensor, ids: Tensor) -> Tensor:
    return rows.gather(-1, ids[:, None])[:, 0]


def _by_rows(
    piece: Callable[[Tensor, Tensor], Tensor], logits: Tensor, other: Tensor | None, memory: int
) -> Tensor:
    """Apply `piece` to so many rows at a time that its temporaries fit into `memory` bytes."""
    if logits.ndim != 2:
        raise ShapeError(f"logits must be [N, V], got {list(logits.shape)}")
    in_range("memory", memory, "[1, inf)", integer=True)
    other = logits if other is None else other
    dtype = logits.dtype if logits.dtype == torch.float64 else torch.float32
    rows = max(1, memory // (COPIES * dtype.itemsize * max(logits.shape[1], 1)))
    pieces = [
        piece(logits[start : start + rows].to(dtype), other[start : start + rows])
        for start in range(0, max(len(logits), 1), rows)
    ]
    return torch.cat(pieces)


def _checked(logits: Tensor, targets: Tensor) -> Tensor:
    if targets.shape != logits.shape[:1] or targets.dtype != torch.long:
        raise ShapeError(
            f"targets must be int64 [{len(logits)}], one per row of the logits, "
            f"got {list(targets.shape)} {targets.dtype}"
        )
    outside = (targets < 0) | (targets >= logits.shape[-1])
    if outside.any():
        raise InputError(
            f"target {int(targets[outside][0])} is no token of a vocabulary of {logits.shape[-1]}"
        )
    return targets
