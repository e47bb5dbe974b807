"""The exact mode: the most probable text of all, or of each length, by branch and bound.

    y* = argmax p(y) over the texts of a constraint that have the attribute A

Prefixes are expanded depth first, likeliest first. One is dropped when even the best text that
could grow out of it is no better than what was found:

    log p(y_<=t) + bound(y_<=t) <= log p(incumbent)

where `bound` is at least log p(rest, A | y_<=t) for every rest. 0 is always admissible; so is log
P(A | y_<=t), or anything above it, such as an exact prefix probability. With one incumbent for each
length, a prefix lives while it can still improve any of them. The search is exact, and exponential
at worst: for small models, short texts or peaked distributions. `max_passes` makes it give up,
with `proven` False.

Many prefixes of one depth are read in one forward pass; each group keeps its parents' cache.

Source: Making the Most of your Model: Methods for Finetuning and Applying Pretrained Transformers
(arXiv 2408.16241), after MAP's not dead yet (arXiv 2311.08817). Ours: the bound as an argument, and
the batches.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenry.core.checks import in_range
from tokenry.decode.constraints.base import State
from tokenry.decode.samplers.base import DEAD, fitted_mask
from tokenry.decode.samplers.request import Decoding, Request

Accept = Callable[[tuple[int, ...]], bool]
Bound = Callable[[list[list[int]]], "Sequence[float] | Tensor"]


@dataclass(frozen=True)
class Mode:
    """A most probable text.

    Attributes:
        ids: without the end.
        logprob: with it.
        proven: whether the search was completed.
        passes: forward passes of the whole search.
    """

    ids: list[int]
    logprob: float
    proven: bool
    passes: int


def exact_mode(
    request: Request,
    accept: Accept | None = None,
    *,
    bound: Bound | None = None,
    width: int = 64,
    max_passes: int | None = None,
) -> Mode | None:
    """The most probable text within the request's limit (the end counts as a token), None if there
    is none.

    Args:
        request: its constraint, temperature and processors are kept; texts end by themselves.
        accept: the attribute, asked about whole texts.
        bound: for many prefixes at once, see above.
        width: prefixes read in one pass.
    """
    modes = _branch_and_bound(request, lambda length: 0, accept, bound, width, max_passes)
    return modes.get(0)


def exact_modes_by_length(
    request: Request,
    accept: Accept | None = None,
    *,
    bound: Bound | None = None,
    width: int = 64,
    max_passes: int | None = None,
) -> dict[int, Mode]:
    """The most probable text of every length that has one; as `exact_mode`."""
    modes = _branch_and_bound(request, lambda length: length, accept, bound, width, max_passes)
    return {length: modes[length] for length in sorted(modes)}  # type: ignore[type-var]


@dataclass
class _Children:
    """Prefixes of one depth that wait to be read, likeliest first.

    Child c is texts[rows[c]] with tokens[c] behind it, of log-probability values[c]; decoding and
    states (of the constraint) have read the parents.
    """

    decoding: Decoding
    texts: list[list[int]]
    states: list[State]
    rows: Tensor
    tokens: Tensor
    values: Tensor

    def split(self, least: float, width: int) -> tuple[_Children, _Children]:
        """The next `width` of those above `least`, and the others of them."""
        count = int((self.values > least).sum())
        return self._part(0, min(width, count)), self._part(width, count)

    def _part(self, begin: int, end: int) -> _Children:
        part = slice(begin, end)
        cut = (self.rows[part], self.tokens[part], self.values[part])
        return _Children(self.decoding, self.texts, self.states, *cut)

    def keep(self, index: Tensor) -> _Children:
        cut = (self.rows[index], self.tokens[index], self.values[index])
        return _Children(self.decoding, self.texts, self.states, *cut)

    def ids(self) -> list[list[int]]:
        pairs = zip(self.rows.tolist(), self.tokens.tolist(), strict=True)
        return [[*self.texts[row], token] for row, token in pairs]

    def read(self) -> tuple[Decoding, list[State]]:
        decoding = self.decoding.copy()
        decoding.select(self.rows)
        decoding.append(self.tokens)
        pairs = zip(self.rows.tolist(), self.tokens.tolist(), strict=True)
        return decoding, [self.states[row].advance(token) for row, token in pairs]


@torch.no_grad()
def _branch_and_bound(
    request: Request,
    slot: Callable[[int], Hashable],
    accept: Accept | None,
    bound: Bound | None,
    width: int,
    max_passes: int | None,
) -> dict[Hashable, Mode]:
    """The best text of each slot; a slot is what texts of that length compete for."""
    in_range("width", width, "[1, inf)", integer=True)
    in_range("max_passes", max_passes, "[1, inf)", integer=True, optional=True)
    longest = request.max_new_tokens - 1
    best: dict[Hashable, tuple[float, list[int]]] = {}
    # what texts that have t tokens by now can still compete for
    reached = [{slot(length) for length in range(t, longest + 1)} for t in range(longest + 1)]

    def to_beat(length: int) -> float:
        return min(best[key][0] if key in best else DEAD for key in reached[length])

    def grow(
        decoding: Decoding, texts: list[list[int]], states: list[State], so_far: Tensor
    ) -> None:
        """Score the ends of prefixes that were read, and put their children on the stack."""
        length = len(texts[0])
        logprobs = request.logprobs(decoding, texts).double()
        V = logprobs.shape[-1]
        mask = torch.stack([fitted_mask(state, V) for state in states]).to(logprobs.device)
        total = (so_far.to(logprobs)[:, None] + logprobs).masked_fill(~mask, DEAD)  # [n, V]
        ends = [token for token in request.constraint.eos if token < V]
        key = slot(length)
        for text, value in zip(texts, total[:, ends].logsumexp(-1).tolist(), strict=True):
            better = value > (best[key][0] if key in best else DEAD)
            if better and (accept is None or accept(tuple(text))):
                best[key] = (value, text)
        if length == longest:
            return
        total[:, ends] = DEAD
        rows, tokens = (total > to_beat(length + 1)).nonzero(as_tuple=True)
        values, order = total[rows, tokens].sort(descending=True, stable=True)
        stack.append(_Children(decoding, texts, states, rows[order], tokens[order], values))

    stack: list[_Children] = []
    state = request.constraint.begin(request.prompt_ids)
    grow(request.rows(), [[]], [state], torch.zeros(1, dtype=torch.float64))
    passes, proven = 1, True
    while stack:
        waiting = stack.pop()
        least = to_beat(len(waiting.texts[0]) + 1)
        children, others = waiting.split(least, width)
        if len(others.rows):
            stack.append(others)
        if len(children.rows) and bound is not None:
            rest = torch.as_tensor(bound(children.ids()), dtype=torch.float64)
            within = children.values + rest.to(children.values) > least
            children = children.keep(within.nonzero()[:, 0])
        if not len(children.rows):
            continue
        if passes == max_passes:
            proven = False
            break
        passes += 1
        decoding, states = children.read()
        grow(decoding, children.ids(), states, children.values)
    return {key: Mode(ids, value, proven, passes) for key, (value, ids) in best.items()}
