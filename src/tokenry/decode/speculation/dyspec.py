"""DySpec: a draft tree that grows where the draft model is sure of itself.

A draft q guesses at the target p. Below a node with path probability π (the product of q along the
path from the root) tokens y_1, y_2, ... are drawn from q without replacement, y_i from the residual
R_i = q with the earlier ones banned. If a guess is accepted as often as it is drafted, the i-th
draw is looked at by the verification with probability

    v_i = π Π_{j<i} (1 - R_j(y_j)) = π (1 - Σ_{j<i} q(y_j)),

and accepted with v_i R_i(y_i) = π q(y_i), the path probability of the node it makes. v never grows
from a node to its child or next sibling, so that taking the largest v first, with a heap, gives the
tree of m draws with the largest Σ v. v_i is known before y_i is drawn: the tree's shape does not
look at what it decides on, and recursive rejection (see `rejection`) keeps the target's
distribution.

Two ways to expand that tree stand in `best_first`: the heap, one call of the draft for each node
that gets children, and one call per depth.

Source: DySpec: Faster Speculative Decoding with Dynamic Token Tree Structure (arXiv 2410.11744).
Ours: guesses that are not drawn but are the most probable tokens in order are known beforehand, so
they are ranked by the chance of being accepted, π q(y_i), calibrated as in `tree_expansion`. The
number of nodes, if not given, and the depth, follow the measured times of the target's and the
draft's passes. For drawn guesses a rule that looks ahead would change the distribution: see
`best_first.affordable`.
"""

from __future__ import annotations

import time
from bisect import bisect
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from tokenry.core.checks import one_of, within
from tokenry.decode.speculation.best_first import (
    MOST_DEPTH,
    ChildGuesses,
    TreeExpansion,
    affordable,
    best_first,
    by_level,
)
from tokenry.decode.speculation.draft_source import Source, source_of
from tokenry.decode.speculation.latency import latency_curve
from tokenry.decode.speculation.recycling import RANGES, AdjacencyMatrix, top
from tokenry.decode.speculation.speculate import drafter
from tokenry.decode.speculation.tree import TokenTree, best_size, seconds
from tokenry.decode.speculation.tree_expansion import MOST_NODES, Calibration, Guess, preorder
from tokenry.decode.speculation.verify import Accepted

TIMED_CALLS = 8
STREAM = 0x5DEECE66D  # keeps the draft's draws apart from a verification with the same seed


@drafter("dyspec", paper=106)
@dataclass(frozen=True)
class DySpec:
    """Drafts with a small model, as a tree that follows its probabilities.

    Args:
        draft: a causal model with the target's vocabulary, or a function from texts [n, T] to
            logits [n, V]; None learns which token follows which while it decodes (the table of
            `recycling`).
        nodes: how many to draft; None takes as many as pay on this machine.
        depth: how deep at most; None weighs what deeper levels gave so far against the time of the
            draft's calls.
        temperature: of the draft's distribution; the target's own is best.
        sampled: False guesses the most probable tokens in order; True draws them, which accepts
            more where the target's temperature is high (the text then has the right distribution,
            but another seed's words).
        breadth: guesses below one node.
        threshold: the paper's c, the smallest value of a node.
        expansion: one call of the draft per depth ("levels"), or one per node with the paper's
            "heap".
        seed: of the draws.
        memory: what the drafter has learned.
    """

    draft: Any = None
    nodes: int | None = None
    depth: int | None = None
    temperature: float = 0.6
    sampled: bool = False
    breadth: int = 16
    threshold: float = 0.0
    expansion: Literal["levels", "heap"] = "levels"
    seed: int = 0
    memory: DraftMemory = field(default_factory=lambda: DraftMemory(), repr=False, compare=False)

    reads_prompt = False

    def __post_init__(self) -> None:
        within(self, "[1, inf)", "breadth", integer=True)
        within(self, "(0, inf)", "temperature")
        within(self, "[0, 1]", "threshold")
        within(self, "[0, inf)", "nodes", "depth", integer=True, optional=True)
        within(self, "[0, inf)", "seed", integer=True)
        one_of("DySpec.expansion", self.expansion, ("levels", "heap"))

    def begin(self, model: Any, prompt: Sequence[int]) -> DySpecDraft:
        size = model.config.get_text_config().vocab_size
        if self.draft is None and self.memory.table is None:
            self.memory.table = AdjacencyMatrix(size, min(8, size))
        source = source_of(self.draft, size, prompt, self.memory.table)
        return DySpecDraft(self, source, prompt, latency_curve(model) if self.nodes is None else {})


@dataclass
class DraftMemory:
    """What a drafter has learned: successors of tokens, how far probabilities hold, times."""

    table: AdjacencyMatrix | None = None
    calibration: Calibration = field(default_factory=Calibration)
    generator: torch.Generator | None = None
    calls: deque[float] = field(default_factory=lambda: deque(maxlen=TIMED_CALLS))
    size: int = 8


class DySpecDraft:
    """One text's drafts."""

    def __init__(
        self,
        drafter: DySpec,
        source: Source,
        prompt: Sequence[int],
        latency: Mapping[int, float],
    ):
        self.drafter, self.source, self.latency = drafter, source, latency
        self.memory = drafter.memory
        self.length = len(prompt)  # committed tokens, the root of the next tree not counted
        self.pending = list(prompt)  # those of them that the draft has not read
        self.probs: dict[int, Tensor] = {}  # q [V] below the nodes that the draft has read
        if not self._depth():
            self.memory.calls.clear()  # drafting did not pay: see whether it does now

    def draft(self, last_token: int, budget: int) -> TokenTree:
        drafter = self.drafter
        self.pending.append(last_token)
        self.length += 1
        self.probs = {}
        most = MOST_NODES if drafter.nodes is None else drafter.nodes
        depth = max(0, min(budget, self._depth(), self.source.window - self.length))
        expanded = by_level if drafter.expansion == "levels" else best_first
        tree = expanded(last_token, self.expand, most, depth, drafter.threshold)
        order = tree.best()[:most]
        if drafter.nodes is None and drafter.sampled:
            order = order[: affordable([tree.acceptances[node] for node in order], self.latency)]
        elif drafter.nodes is None:
            order = order[: best_size([tree.values[node] for node in order], self.latency)]
        self.memory.size = len(order)
        return self.planted(tree, [0, *sorted(order)])

    def update(self, tree: TokenTree, logits: Tensor, accepted: Accepted) -> None:
        self.memory.calibration.learn(tree, accepted)
        self._learn_depth(tree, accepted)
        self.source.learn(tree, logits, accepted)
        path = [tree.notes[node].cursor for node in accepted.path[1:]]
        read = [node for node in path if node in self.probs]
        self.source.settle(read)
        self.pending += [tree.tokens[node] for node in accepted.path[1 + len(read) :]]
        self.length += len(path)

    def expand(self, tree: TreeExpansion, nodes: list[int]) -> list[ChildGuesses]:
        """Ask the draft what may follow these nodes, in one call."""
        started = time.perf_counter()
        if nodes == [0]:
            logits = self.source.root(self.pending)[None]
            self.pending = []
        else:
            logits = self.source.below(tree, nodes)
        # a row of -inf, where the source knows nothing, gives no guesses
        probs = (logits.float() / self.drafter.temperature).softmax(-1).nan_to_num_(0.0)
        guesses = self._drawn(probs) if self.drafter.sampled else self._likeliest(probs)
        self.probs |= dict(zip(nodes, probs, strict=True))
        self.memory.calls.append(time.perf_counter() - started)
        return guesses

    def _likeliest(self, probs: Tensor) -> list[ChildGuesses]:
        """The most probable tokens of every row."""
        values, ids = top(probs, min(self.drafter.breadth, probs.shape[1]))
        guesses = []
        for tokens, chances in zip(ids.tolist(), values.tolist(), strict=True):
            rates = [
                (self.memory.calibration.rate(guess_of(token, chance, 0)), token)
                for token, chance in zip(tokens, chances, strict=True)
                if chance > 0
            ]
            rates.sort(key=lambda pair: -pair[0])
            order, falling = [token for _, token in rates], [rate for rate, _ in rates]
            guesses.append(ChildGuesses(order, falling, falling, falling))
        return guesses

    def _drawn(self, probs: Tensor) -> list[ChildGuesses]:
        """Draws without replacement from every row, in the order in which they come."""
        memory = self.memory
        if memory.generator is None:
            memory.generator = torch.Generator(probs.device).manual_seed(STREAM + self.drafter.seed)
        # the smallest of exponential clocks with rates q rings first with probability q
        clocks = torch.empty_like(probs).exponential_(generator=memory.generator)
        keys = probs / clocks.clamp_min_(torch.finfo(probs.dtype).tiny)
        ids = top(keys, min(self.drafter.breadth, probs.shape[1]))[1]
        chances = probs.gather(1, ids).double()
        left = (1 - chances.cumsum(1) + chances).clamp_min_(0)  # before each draw
        square = probs.double().square().sum(1, keepdim=True)
        square = (square - chances.square().cumsum(1) + chances.square()).clamp_min_(0)
        acceptances = square / left.clamp_min(1e-12)  # left · Σ R²
        guesses = []
        for row in range(len(probs)):
            count = int((chances[row] > 0).sum())  # impossible tokens come last
            numbers = (table[row, :count].tolist() for table in (ids, left, chances, acceptances))
            guesses.append(ChildGuesses(*numbers))
        return guesses

    def planted(self, found: TreeExpansion, nodes: list[int]) -> TokenTree:
        """These nodes of what has grown, with what the verification and `update` need."""
        index_of = {-1: -1} | {node: at for at, node in enumerate(nodes)}
        parents = [index_of[found.parents[node]] for node in nodes]
        tokens = [found.tokens[node] for node in nodes]
        notes = [guess_of(tokens[0], 1.0, 0)]
        for node, token in zip(nodes[1:], tokens[1:], strict=True):
            notes.append(guess_of(token, float(self.probs[found.parents[node]][token]), node))
        proposals = None
        if self.drafter.sampled and len(nodes) > 1:
            rows = torch.stack([self.probs[max(0, found.parents[node])] for node in nodes])
            earlier: dict[int, list[int]] = {}
            for at, parent in enumerate(parents):
                drawn = earlier.setdefault(parent, [])
                rows[at, drawn] = 0.0
                drawn.append(tokens[at])
            proposals = rows / rows.sum(1, keepdim=True)
        tree = TokenTree(tuple(tokens), tuple(parents), tuple(notes), proposals)
        return tree.select(preorder(tree))

    # ---- how deep

    def _depth(self) -> int:
        """The depth that gives most tokens per second, a call of the draft for each level of it,
        as far as the trees so far tell. It is settled before anything is drawn."""
        drafter, memory = self.drafter, self.memory
        if drafter.depth is not None:
            return drafter.depth
        if drafter.nodes is not None or len(memory.calls) < TIMED_CALLS:
            return MOST_DEPTH
        call = sorted(memory.calls)[TIMED_CALLS // 2]
        target = seconds(self.latency, memory.size + 1)
        best, speed, path_probability, expected = 0, 1 / seconds(self.latency, 1), 1.0, 1.0
        for depth in range(1, MOST_DEPTH + 1):
            path_probability *= memory.calibration.rate(level(depth))
            expected += path_probability
            if (rate := expected / (target + depth * call)) > speed:
                best, speed = depth, rate
        return best

    def _learn_depth(self, tree: TokenTree, accepted: Accepted) -> None:
        """Count for every level whether one of the guesses below the accepted node was right."""
        parents = set(tree.parents)
        for depth, node in enumerate(accepted.path, start=1):
            if node in parents:
                self.memory.calibration.count(level(depth), depth < len(accepted.path))


def guess_of(token: int, prob: float, node: int) -> Guess:
    return Guess(token, prob, bisect(RANGES, prob), node)


def level(depth: int) -> Guess:
    """What stands for one level of the trees in the calibration."""
    return Guess(-1, 1.0, ("depth", depth), None)
