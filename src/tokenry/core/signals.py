"""Signals: one number per token from the distribution that predicted it.

Every signal takes logits [N, V] (N token positions, V vocabulary entries; any float dtype, computed
in float32 or better) and returns [N]. Those about the token that came take targets [N] as well;
those about the distribution alone accept and ignore it, so that all can be called alike. What one
takes besides it names in `needs`, and gets by keyword; `measured` calls any of them.

    reference    a second model's logits [N, V], over the same vocabulary
    topk         the likeliest tokens alone (`TopK`), as a service returns them
    counts       [V], how often each token occurs in some corpus

With p = softmax(logits), x the target, and q the reference's p or the counts' shares:

    surprisal    -log p(x)                               nats
    entropy      H = -Σ_v p_v log p_v                    nats
    varentropy   Σ_v p_v (-log p_v - H)²                 nats²
    rank         number of tokens likelier than x        0 is the top token; ties share the rank
    margin       log p(first) - log p(second)            nats
    divergence   D_f(q || p)                             nats for the KL-like ones
    pmi          log p(x) - log q(x)                     nats; what the context says about x
    topk-entropy the entropy of the k likeliest tokens and of all others taken for one: nats, and
                 never more than H

Work runs in pieces of rows whose temporaries fit into `memory` >= 1 bytes (at least a row), so a
vocabulary of 262k entries costs no more than its logits do. Tokens of probability 0 are harmless:
they add nothing, and as a target have infinite surprisal. Gradients flow (their graph is not
bounded by `memory`).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from tokenry.core.checks import in_range, one_of
from tokenry.core.divergence import divergence as logits_divergence
from tokenry.core.divergences import JENSEN_SHANNON
from tokenry.core.errors import InputError, ShapeError
from tokenry.core.f_divergence import FDivergence
from tokenry.core.registry import Entry, Role

MEMORY = 64 * 2**20
COPIES = 4  # float32 tensors of a piece's size that live at once, at most


NEEDS = ("reference", "topk", "counts")


class TopK(NamedTuple):
    """The k likeliest tokens of each position, likeliest first: ids and logprobs (nats), [N, k]."""

    ids: Tensor
    logprobs: Tensor


class Signal(Protocol):
    """The role: one number per token from the logits that predicted it, s_t = f(l_t, x_t)."""

    def __call__(self, logits: Tensor, targets: Tensor, /, **needs: Any) -> Tensor:
        """[N] from logits [N, V] and targets [N]."""
        ...


def _check_needs(entry: Entry) -> None:
    for need in entry.needs:
        one_of(f"a need of the signal {entry.key}", need, NEEDS)


signal = Role("signal", Signal, ("tokenry.core.signals",), check=_check_needs)


def measured(name: str, logits: Tensor, targets: Tensor, **given: Any) -> Tensor:
    """The registered signal `name`, [N], from what it needs of `given`; the rest is not used.

    Raises InputError for what it needs and was not given.
    """
    entry = signal.entry(name)
    if missing := [need for need in entry.needs if given.get(need) is None]:
        raise InputError(f"the signal {name} needs {', '.join(missing)}, which is not there")
    return entry.value(logits, targets, **{need: given[need] for need in entry.needs})


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


@signal("divergence", needs=("reference",))
def divergence(
    logits: Tensor,
    targets: Tensor | None = None,
    *,
    reference: Tensor,
    kind: FDivergence | str = JENSEN_SHANNON,
    memory: int = MEMORY,
) -> Tensor:
    """D(reference || this model) at every position, [N]; both over the same vocabulary."""
    if len(logits) != len(reference):
        raise ShapeError(f"{len(logits)} positions cannot be compared with {len(reference)}")

    def piece(rows: Tensor, others: Tensor) -> Tensor:
        return logits_divergence(others, rows, kind)

    return _by_rows(piece, logits, reference, max(memory // 2, 1))


@signal("pmi", needs=("counts",))
def pmi(
    logits: Tensor, targets: Tensor, *, counts: Tensor, smoothing: float = 1.0, memory: int = MEMORY
) -> Tensor:
    """log p(x) - log q(x), nats [N], with q(x) = (counts_x + a) / sum_v (counts_v + a).

    counts: [V], not negative. smoothing: a in (0, inf), so that no token is impossible without its
    context.
    """
    in_range("smoothing", smoothing, "(0, inf)")
    if counts.shape != logits.shape[-1:]:
        raise ShapeError(f"counts must be [{logits.shape[-1]}], got {list(counts.shape)}")
    share = counts.double() + smoothing
    prior = (share / share.sum()).log()[targets]
    found = surprisal(logits, targets, memory=memory)
    return -found - prior.to(found)


@signal("topk-entropy", needs=("topk",))
def topk_entropy(logits: Tensor | None, targets: Tensor | None = None, *, topk: TopK) -> Tensor:
    """-sum_i p_i log p_i - r log r, nats [N], with r = 1 - sum_i p_i the mass of all other tokens.

    logits: not used, so that None will do.
    """
    if not topk.logprobs.shape[-1]:
        raise ShapeError("topk must hold at least one token for each position")
    logprob = topk.logprobs.double()
    probability = logprob.exp()
    rest = (1 - probability.sum(-1)).clamp(0, 1)
    inside = -torch.xlogy(probability, probability).sum(-1)
    return (inside - torch.xlogy(rest, rest)).to(
        torch.promote_types(topk.logprobs.dtype, torch.float32)
    )


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
